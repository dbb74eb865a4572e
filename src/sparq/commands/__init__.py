"""The commands: a file for each topic, with what its commands take and what they do."""
