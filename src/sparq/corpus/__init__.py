"""Corpora: reading recordings with their transcripts, and building units and pieces from them."""
