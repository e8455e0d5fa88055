"""Galleries of embedded pictures, and the search of `tll find` for look-alikes in them."""
