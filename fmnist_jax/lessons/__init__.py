"""The post's lessons against many seeds."""
