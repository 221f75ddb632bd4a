"""redlib: how much a visual token says, and which ones can go.

The library behind the notebooks of this repository. Imports point only downwards:

    params, geometry, layouts,          parameters, token grids, what stands at which position, the
    errors, machine                     error a reader sees, how fast this machine is just now
    pictures, hub, models               image files; where a model's files lie; a checkpoint as one
                                        handle
    store, scale                        resumable result tables, and many processes that fill them
    planner, engine                     what many variants of one image share; exact forwards over
                                        them that compute it once
    probe, leave_one_out, states,       what a token says alone, what its absence changes, what
    clustering, codebook, stages        attention says of it; prototypes of redundant tokens, lazily
    prune, bench                        which tokens to keep; what the answers are then worth
    data, released                      the paper's data sets; where a notebook's images come from;
                                        the authors' own codebooks
    notebook, report, answers           a notebook at work, its figures, what every number counts
    costs, forecast, batch              what a run will fetch and cost; the run, and its page
    harness                             pruned models inside lmms-eval

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
    "load": "models",
    "open_image": "pictures",
    "pruned": "prune.install",
}
_MODULES = (
    "answers", "batch", "bench", "clustering", "codebook", "costs", "data", "engine", "errors",
    "forecast", "geometry", "hub", "layouts", "leave_one_out", "machine", "models", "notebook",
    "params", "pictures", "planner", "probe", "prune", "released", "report", "scale", "stages",
    "states", "store", "tabletop",
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
