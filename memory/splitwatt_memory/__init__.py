"""Buddy Compression measured on real tensors: codecs, target ratios, and what they would cost over a link."""
