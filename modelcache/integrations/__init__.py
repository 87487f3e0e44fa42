"""Faces that other libraries call. Each imports its library, and nothing of modelcache imports them."""
