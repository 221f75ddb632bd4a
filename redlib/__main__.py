"""The command line: `redlib`, or `python -m redlib` where scripts are not on the path.

    redlib run params/tiny.yaml             all notebooks, then the page of figures
    redlib run params/tiny.yaml --only 05,06 --force
    redlib run params/7b.yaml --dry-run     what that would fetch and cost, and nothing else
    redlib page params/tiny.yaml            the page again, from results that are there; no model
    redlib params 04                        what can be set in notebook 04
    redlib codebook import FILE.pt --model llava-hf/llava-1.5-7b-hf    the authors' codebook as ours
    redlib codebook show FILE.safetensors   how many prototypes, how alike, of which images
    redlib train tiny-llava-1.5             make the embedded model again, from nothing
    redlib evaluate tiny-llava-1.5 --quick  measure what its model card says
    redlib bench                            how much the engine saves, and that it is exact

A mistake in the input ends with one line on stderr and exit code 2; a program error in a notebook
with one line that says where to look, and exit code 1.
"""

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

try:
    from redlib import batch, params
    from redlib.errors import RedlibError
    from redlib.notebook import declared, root, runs_folder
    from redlib.store import FULL
except KeyboardInterrupt:  # imports take seconds on a busy machine
    print("redlib: interrupted before anything was done", file=sys.stderr)
    sys.exit(2)


class _Parser(argparse.ArgumentParser):
    """argparse, with its errors in our one line."""

    def error(self, message: str) -> None:
        raise RedlibError(f"{message} (`{self.prog} --help` explains)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    # What was done is done: no letter that the terminal lacks may end in an error afterwards.
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        chosen = _parser().parse_args(arguments)
        code = chosen.command(chosen) or 0
        sys.stdout.flush()  # what it still holds may not fit on the disk
        return code
    except RedlibError as error:
        print(f"redlib: {error}", file=sys.stderr)
        return 2
    except batch.NotebookFailed as error:
        print(f"redlib: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader closed the pipe, as `redlib params | head` does
        _drop_output()
        return 0
    except OSError as error:
        if error.filename is not None:
            told = f"{error.filename}: {error.strerror}; see who may read and write there"
        elif error.errno in FULL:  # print names no file
            told = f"the output cannot be written ({error.strerror}); free some space"
            _drop_output()
        else:
            raise
        print(f"redlib: {told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("redlib: interrupted; what was finished is kept", file=sys.stderr)
        return 2


def _drop_output() -> None:
    """Let what was not written yet go nowhere, or Python would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(chosen: argparse.Namespace) -> None:
    only = [part.strip() for part in chosen.only.split(",")] if chosen.only is not None else None
    if chosen.dry_run:
        print("\n".join(batch.forecast_lines(chosen.file, only, jobs=chosen.jobs)))
        return
    rows, page = batch.run(
        chosen.file,
        only=only,
        force=chosen.force,
        jobs=chosen.jobs,
        say=lambda line: print(line, flush=True),
    )
    table = [("item", "file", "seconds"), *((row.item, row.file, row.seconds) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(3)]
    print()
    for item, file, seconds in table:
        print(f"{item:<{widths[0]}}  {file:<{widths[1]}}  {seconds:>{widths[2]}}")
    print()
    print(batch.from_here(page))


def _page(chosen: argparse.Namespace) -> None:
    print(batch.from_here(batch.draw_pages(chosen.file)))


def _params(chosen: argparse.Namespace) -> None:
    names = list(params.Params.model_fields)
    if chosen.notebook is not None:
        if chosen.notebook not in params.NOTEBOOKS:
            known = ", ".join(params.NOTEBOOKS)
            raise RedlibError(f"no notebook {chosen.notebook!r}; there are {known}")
        names = list(declared(root() / "notebooks" / params.NOTEBOOKS[chosen.notebook]))
    for name in names:
        if name not in params.Params.model_fields:
            raise RedlibError(f"notebook {chosen.notebook}: unknown parameter {name!r}")
        print(_explained(name))


def _explained(name: str) -> str:
    """One parameter in words: its type, its default, its meaning, and the presets' values."""
    field = params.Params.model_fields[name]
    default = "null" if field.default is None else str(field.default)
    if isinstance(field.default, bool):
        default = default.lower()
    text = f"{field.description}. Type: {params.describe(name)}. Default: {default}."
    if name in params.PRESETS["paper"]:
        says = {p: params.preset_value(p, name, "llava-1.5") for p in params.PRESETS}
        text += " Presets: " + ", ".join(f"{p} {value}" for p, value in says.items()) + "."
    return f"{name}\n" + textwrap.indent(textwrap.fill(text, 92, break_on_hyphens=False), "    ")


def _import_codebook(chosen: argparse.Namespace) -> None:
    from redlib import released  # torch, only for who needs it

    if not params.local(chosen.file).is_file():
        raise RedlibError(f"no file {chosen.file!r}: one of the authors' codebooks is wanted (.pt)")
    out = params.local(chosen.out or Path(chosen.file).with_suffix(".safetensors"))
    if out.exists():
        raise RedlibError(f"{str(out)!r} exists: name another file with --out, or remove it")
    codebook = released.bring(
        chosen.file, model=chosen.model, revision=chosen.revision, images=chosen.images
    )
    told = [released.describe(codebook)]
    if chosen.clusters is not None:
        told.insert(0, released.check_clusters(codebook, chosen.clusters))
    try:
        codebook.save(out)
    except RedlibError as error:
        # The advice of `store.writing` is for runs, whose folder an environment variable names.
        cause = error.__context__
        if not isinstance(cause, OSError) or cause.errno in FULL:
            raise
        raise RedlibError(
            f"{out}: cannot be written ({cause.strerror}); choose a folder that can be written, by "
            "--out"
        ) from None
    print(*told, out, sep="\n")


def _show_codebook(chosen: argparse.Namespace) -> None:
    from redlib import released
    from redlib.codebook import Codebook  # torch, only for who needs it

    print(released.describe(Codebook.load(chosen.file)))


def _train(chosen: argparse.Namespace) -> None:
    from redlib.modelcard import card, evaluation
    from redlib.tabletop import training  # torch, only for who needs it

    where = training.train(chosen.name, runs_folder("train"), plain=chosen.plain)
    table = evaluation.measure(str(where))
    card.write(where, table)
    print(card.table_text(table))
    print(where)


def _evaluate(chosen: argparse.Namespace) -> int | None:
    from redlib.modelcard import evaluation  # torch, only for who needs it

    return evaluation.main(chosen.name, quick=chosen.quick, as_json=chosen.json)


def _bench(chosen: argparse.Namespace) -> int | None:
    from redlib import models
    from redlib.bench import pruned, speed  # torch, only for who needs it
    from redlib.study import timing

    folder = root() / "figures" / "bench"
    if chosen.gpu or chosen.small:
        rows = [*speed.measure_gpu(small=chosen.small), *pruned.measure_gpu(small=chosen.small)]
        return speed.publish(rows, None if chosen.small else folder / "bench-gpu.json")
    if chosen.every_patch:
        return speed.publish(speed.exact(None), folder / "exactness.json")
    tiny = models.load("tiny-llava-1.5", device="cpu")
    rows = [*speed.measure(), *pruned.measure(tiny), timing.minutes()]
    return speed.publish(rows, folder / "bench.json")


def _file(text: str) -> str:
    """An argument that names a file; "" would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty; name a file")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="redlib", description="Visual token redundancy, made runnable.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    run = commands.add_parser("run", help="run the notebooks for a parameter file or a set")
    run.add_argument("file", metavar="FILE", type=_file, help="e.g. params/smoke.yaml")
    run.add_argument("--only", metavar="02,03", help="numbers of the notebooks to run")
    run.add_argument("--force", action="store_true", help="run even what has not changed")
    run.add_argument("--dry-run", action="store_true", help="only say what it would fetch and cost")
    run.add_argument("--jobs", type=int, metavar="N", help="how many notebooks at a time")
    run.set_defaults(command=_run)
    page = commands.add_parser("page", help="write the page and the ledger of claims again")
    page.add_argument("file", metavar="FILE", type=_file, help="e.g. params/tiny.yaml")
    page.set_defaults(command=_page)
    show = commands.add_parser("params", help="names, types, defaults and meaning of parameters")
    show.add_argument("notebook", metavar="NN", nargs="?", help="number of a notebook")
    show.set_defaults(command=_params)
    codebook = commands.add_parser("codebook", help="import or look at a codebook")
    verbs = codebook.add_subparsers(metavar="VERB", required=True, parser_class=_Parser)
    bring = verbs.add_parser("import", help="make one of ours from the authors' released files")
    bring.add_argument("file", metavar="FILE.pt", type=_file, help="prototypes, a tensor (N, D)")
    bring.add_argument("--model", required=True, help="whose they are: name, folder or hub id")
    bring.add_argument("--revision", help="commit of the model on the hub; default: the newest")
    bring.add_argument("--images", metavar="FILE.json", help="default: of the same name beside it")
    bring.add_argument("--clusters", metavar="FILE.txt", help="hold the released log against it")
    bring.add_argument("--out", metavar="FILE", help="default: FILE.safetensors beside it")
    bring.set_defaults(command=_import_codebook)
    look = verbs.add_parser("show", help="how many prototypes, how alike, of which images")
    look.add_argument("file", metavar="FILE", type=_file, help="a codebook, imported or made by 05")
    look.set_defaults(command=_show_codebook)
    train = commands.add_parser("train", help="train an embedded model from nothing")
    train.add_argument("name", metavar="NAME", help="e.g. tiny-llava-1.5")
    train.add_argument("--plain", action="store_true", help="a tower without labels of patches")
    train.set_defaults(command=_train)
    evaluate = commands.add_parser(
        "evaluate",
        help="measure an embedded model's card again",
        description="Print the numbers of a model card, measured again, and write the card beside "
        "the weights of a model that is shipped or that `redlib train` made. Beside others, whose "
        "training nobody wrote down, no file is written.",
    )
    evaluate.add_argument("name", metavar="NAME", help="e.g. tiny-llava-1.5, or a model's folder")
    evaluate.add_argument("--quick", action="store_true", help="200 questions per task, not 1,000")
    evaluate.add_argument("--json", action="store_true", help="machine-readable output")
    evaluate.set_defaults(command=_evaluate)
    bench = commands.add_parser("bench", help="time and exactness of the engine against stock")
    instead = bench.add_mutually_exclusive_group()
    instead.add_argument(
        "--every-patch",
        action="store_true",
        help="only exactness, over all patches instead of a sample",
    )
    instead.add_argument("--gpu", action="store_true", help="random 7B and 8B models on a GPU")
    instead.add_argument("--small", action="store_true", help="try what --gpu does, on the CPU")
    bench.set_defaults(command=_bench)
    return parser


if __name__ == "__main__":
    sys.exit(main())
