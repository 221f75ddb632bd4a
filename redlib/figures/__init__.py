"""Figures: one function each, data frame (and image) in, matplotlib figure out.

`style` is the one look; the other modules hold the figures of a notebook or two, and the texts that
go with them. They are imported where they are used:

    from redlib.figures import probes, style
"""
