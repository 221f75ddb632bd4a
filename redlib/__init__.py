"""redlib: how much a visual token says, and which ones can go.

The library behind the notebooks of this repository, from its lowest floor up. Imports point only
downwards, or stay on their floor (a test reads this map):

    errors, params, geometry, layouts,  the error a reader sees, parameters, token grids, what
    machine, memory                     stands at which position, how fast this machine is just now,
                                        where its memory ends
    pictures, hub, models               image files; where a model's files lie; a checkpoint as one
                                        handle
    fingerprint, scale, store           which code made a row; many processes that make rows; the
                                        resumable result tables that they fill
    tabletop                            the embedded world: scenes with exact masks, questions about
                                        them, the training of the small models
    planner, engine                     what many variants of one image share; exact forwards over
                                        them that compute it once
    probe, leave_one_out, states,       what a token says alone, what its absence changes, what
    clustering, codebook, stages        attention says of it; prototypes of redundant tokens, lazily
    prune, bench                        which tokens to keep; what the answers are then worth
    modelcard, harness                  a small model measured and its card written; pruned models
                                        inside lmms-eval
    data, released                      the paper's data sets; where a notebook's images come from;
                                        the authors' own codebooks
    webpage, comparison_tables,         the one look of all pages, Table 1 on a page, what every
    answers, report, notebook           number counts, the page of figures; a notebook at work
    study                               analyses over many images, and the ledger of claims
    tables, figures                     one function per table or figure: a data frame in, a text
                                        table or a picture out
    costs, forecast, batch              what a run will fetch and cost; the run, and its page
    __main__                            the command line

Letters of shapes: B batch, T sequence, L visual tokens, D width, V vocabulary, N prototypes.
A *patch* is a square of the image, a *visual token* its vector at the language model's input.

Names below are imported when they are first used, so `import redlib` alone costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "Grid": "geometry",
    "RedlibError": "errors",
    "VLM": "models",
    "begin": "notebook",
    "install": "prune.install",
    "load": "models",
    "open_image": "pictures",
    "pruned": "prune.install",
    "remove": "prune.install",
}
_MODULES = (
    "answers", "batch", "bench", "clustering", "codebook", "costs", "data", "engine", "errors",
    "forecast", "geometry", "hub", "layouts", "leave_one_out", "machine", "memory", "models",
    "notebook", "params", "pictures", "planner", "probe", "prune", "released", "report", "scale",
    "stages", "states", "store", "tabletop",
)  # fmt: skip

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(import_module(f"redlib.{_HOME[name]}"), name)
    if name in _MODULES:
        return import_module(f"redlib.{name}")
    raise AttributeError(f"module 'redlib' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
