"""Fine-tuning a SpeechLM on a user's own recordings: what a folder holds, how it is learnt, and what came of it."""
