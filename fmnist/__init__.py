"""The task that both programs do: its experiment, its data, and what a run leaves behind."""
