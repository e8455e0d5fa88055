"""Galleries of pictures on disk and what looks alike in them: what `tll find` consists of."""
