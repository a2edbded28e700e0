"""Codecs of one memory entry of 128 bytes: each with a scalar encoder and decoder, and a sizer for millions of entries."""
