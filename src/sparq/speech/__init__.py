"""Speech: audio, encoders, units, vocoder, the judge and the teachers.

Names are imported from the module that is about them (``from sparq.speech.units import Codebook``), so that reading a
file of audio does not load a vocoder.
"""
