"""A plug-in for lmms-eval: its own tasks and metrics, answered by pruned models.

[lmms-eval](https://github.com/EvolvingLMMs-Lab/lmms-eval) loads whatever an installed package
names under the entry point `lmms_eval.models`. This package names one model, `redlib`:

    lmms-eval --model redlib --tasks pope --model_args \\
        pretrained=llava-hf/llava-1.5-7b-hf,method=codebook,keep=64,codebook=mine.safetensors

so a pruned LLaVA is scored by the very code that others report. lmms-eval brings some eighty
packages along and lives in an environment of its own (`make lmms-eval`); nothing else here needs
it.

`answering` holds the work and knows nothing of lmms-eval; `model` is the class that it wants.
"""


def manifest() -> object:
    """What the entry point hands over: the name of the model and where its class lies."""
    from lmms_eval.models.registry_v2 import ModelManifest  # while lmms-eval is being imported

    return ModelManifest(model_id="redlib", chat_class_path="redlib.harness.model.Redlib")
