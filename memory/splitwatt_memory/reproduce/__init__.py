"""What Buddy Compression published beside what these codecs do: tensors that the page makes itself, and real ones from PyPI."""
