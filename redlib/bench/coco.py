"""CIDEr and SPICE: a caption against the captions that people wrote (NoCaps, Flickr30k, COCO).

CIDEr weighs the word sequences that a caption shares with the references by how rare they are among
the references of *all* images, so that it is a number of a whole set and not of one image. SPICE
parses caption and references into scene graphs and takes the F1 of their tuples. Both are those of
pycocoevalcap, after its Penn Treebank tokenizer, as all published numbers are:

    cider({"im1": "a red cup"}, {"im1": ["a cup on a table", "one red cup"], ...})
    spice(captions, references)

Neither is part of a plain installation. The package is the extra "captions" of this one; its
tokenizer and SPICE's parser are Java programs; the parser needs Stanford CoreNLP 3.6.0, half a
gigabyte that has to be put by hand into a folder that CORENLP_DIR names. (pycocoevalcap itself
would download it, into the folder of the installed package.) What is missing is said in one line.

CIDEr and SPICE have different scales and reward different things: compare each with itself alone,
and neither with tabletop-SPICE (`captions`).
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pandas as pd

from redlib.errors import RedlibError

CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
LAST_JAVA = 14
"""The last Java with the JavaScript engine (Nashorn) that SPICE runs in."""

References = Mapping[str, Sequence[str]]


def cider(captions: Mapping[str, str], references: References) -> pd.Series:
    """CIDEr of every caption; the number of the set is the mean.

    Args:
        captions: image -> the caption to judge.
        references: image -> captions that people wrote of it, of the same images.

    Returns:
        CIDEr per image (0 to 10; tables print 100 times the mean), named "CIDEr".

    Raises:
        RedlibError: the package or Java is missing; the images differ; there are fewer than two, so
            that no word is rarer than another; an image has no reference.
    """
    _check(captions, references, "CIDEr")
    if len(captions) < 2:
        raise RedlibError(
            f"CIDEr weighs words by how rare they are over the images and needs at least two; "
            f"got {len(captions)}"
        )
    scorer, _ = _package("CIDEr", "cider.cider"), _java("CIDEr")
    said, told = _tokenized(captions, references)
    _, scores = scorer.Cider().compute_score(told, said)
    return pd.Series(scores, index=list(told), name="CIDEr", dtype=float)


def spice(captions: Mapping[str, str], references: References) -> pd.Series:
    """SPICE of every caption; the number of the set is the mean.

    The parser of pycocoevalcap is run with the jars in CORENLP_DIR and without its cache of parses,
    whose serialiser newer Javas refuse and whose database not every machine can load.

    Args:
        captions, references: as for `cider`; one image is enough.

    Returns:
        SPICE per image (0 to 1; tables print 100 times the mean), named "SPICE".

    Raises:
        RedlibError: the package, Java, CORENLP_DIR or a jar in it is missing; Java is too new; the
            images differ; an image has no reference; the parser failed.
    """
    _check(captions, references, "SPICE")
    package, java, jars = _package("SPICE", "spice.spice"), _java("SPICE"), _corenlp()
    _check_version(java, jars)
    said, told = _tokenized(captions, references)
    home = Path(package.__file__).parent
    path = os.pathsep.join(str(home / name) for name in ("spice-1.0.jar", "lib/*"))
    path = os.pathsep.join([path, str(jars / "*")])
    items = [{"image_id": k, "test": said[k][0], "refs": told[k]} for k in told]
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder, "captions.json"), Path(folder, "scores.json")
        given.write_text(json.dumps(items), encoding="utf-8")
        command = [java, "-Xmx8G", "-cp", path, "edu.anu.spice.SpiceScorer", str(given)]
        command += ["-out", str(found), "-subset", "-silent"]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode or not found.is_file():
            lines = ran.stderr.strip().splitlines() or ["it said nothing"]
            raise RedlibError(f"SPICE's parser failed (exit code {ran.returncode}): {lines[0]}")
        rows = json.loads(found.read_text(encoding="utf-8"))
    scores = {row["image_id"]: row["scores"]["All"]["f"] for row in rows}
    return pd.Series([scores[k] for k in told], index=list(told), name="SPICE", dtype=float)


def ready(metric: str) -> None:
    """See to it that "CIDEr" or "SPICE" can be computed, before hours of answers depend on it.

    Raises:
        RedlibError: the package, Java, CORENLP_DIR or a jar in it is missing; Java is too new.
    """
    _package(metric, f"{metric.lower()}.{metric.lower()}")
    java = _java(metric)
    if metric == "SPICE":
        _check_version(java, _corenlp())


def _check(captions: Mapping[str, str], references: References, metric: str) -> None:
    apart = sorted(set(captions) ^ set(references))
    if apart:
        side = "no references" if apart[0] in captions else "no caption"
        raise RedlibError(f"{metric}: image {apart[0]!r} has {side}; both need the same images")
    bare = [image for image, texts in references.items() if not texts]
    if bare:
        raise RedlibError(f"{metric}: image {bare[0]!r} has an empty list of references")


def _package(metric: str, module: str) -> ModuleType:
    try:
        return import_module(f"pycocoevalcap.{module}")
    except ModuleNotFoundError as error:
        raise RedlibError(
            f"{metric} needs the package pycocoevalcap 1.2, which is not installed ({error}); "
            "run: pip install 'redlib[captions]'"
        ) from None


def _java(metric: str) -> str:
    java = shutil.which("java")
    if java is None:
        raise RedlibError(
            f"{metric} needs Java: install a Java runtime (8 to {LAST_JAVA} for SPICE) and put "
            "its program java on the PATH"
        )
    return java


def _corenlp() -> Path:
    named = os.environ.get("CORENLP_DIR")
    if not named:
        raise RedlibError(
            "SPICE needs Stanford CoreNLP 3.6.0 (stanford-corenlp-full-2015-12-09.zip): unpack it "
            f"and set the environment variable CORENLP_DIR to the folder with {CORENLP[0]}"
        )
    missing = [name for name in CORENLP if not Path(named, name).is_file()]
    if missing:
        raise RedlibError(
            f"CORENLP_DIR is {named!r}, where {' and '.join(missing)} is missing; set it to the "
            "unpacked folder of stanford-corenlp-full-2015-12-09.zip"
        )
    return Path(named)


def _check_version(java: str, jars: Path) -> None:
    """Old Javas call themselves 1.8, newer ones 9 to 25. Nashorn can be had as a jar of its own."""
    told = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    match = re.search(r'version "(?:1\.)?(\d+)', told)
    if match and int(match[1]) > LAST_JAVA and not list(jars.glob("nashorn-core-*.jar")):
        raise RedlibError(
            f"SPICE needs Java 8 to {LAST_JAVA} and the java on the PATH is {match[1]}; put an "
            "older one first, or nashorn-core and the asm jars it needs into CORENLP_DIR"
        )


def _tokenized(
    captions: Mapping[str, str], references: References
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Both by the Penn Treebank tokenizer: lower case, without punctuation."""
    tokenizer = _package("The tokenizer", "tokenizer.ptbtokenizer").PTBTokenizer()

    def run(texts: References) -> dict[str, list[str]]:
        # The tokenizer takes a text for a line, so no text may hold a line break.
        return tokenizer.tokenize(
            {k: [{"caption": " ".join(text.split())} for text in texts[k]] for k in captions}
        )

    return run({k: [text] for k, text in captions.items()}), run(references)
