"""The joint language: vocabulary, tasks, and the model that reads, listens, speaks and writes."""
