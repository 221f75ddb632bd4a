"""Analyses over several images: a model and scenes in, tidy tables and tested statements out.

One image shows what can happen, a claim needs many. So most modules here go the same way, each for
one question of the paper: measure image by image into a table that can be resumed, boil it down to
numbers with intervals that draw whole images, and hold these against a statement that was worded
before (`verdict`). Nothing is drawn here; `redlib.figures` takes the tables.

`subjects`, `probing` and `patches` are behind notebooks 01 to 04, `codebooks`, `ablation`,
`judged`, `preserved`, `maps` and `gathering` behind 05, `pipeline`, `pruning`, `scoring`,
`answered`, `several` and `savings` behind 06, `qualitative`, `describing`, `spotting` and `opening`
behind 07, `controls` and `stability` behind 08. `ledger` and `comparison` read what all of them
left; `extent` says beforehand how much they ask.
"""

LEAST_IMAGES = 10
"""With fewer images no statement is decided: a bootstrap over a handful knows no spread."""

SILENT = 0.1
"""Below this top-1 probability nothing is recognised, in Figure 1 and section 8.1 of the paper."""
