"""Four predictions from a table's rows: an amount, an event, a mixture and a direction, each with its own loss."""
