"""The embedded world: scenes with exact masks, questions about them, and the training of the tiny
checkpoints. `world` draws, `films` sets scenes moving, `questions` and `pairs` ask, `language`
tokenizes, `training` trains. What a checkpoint is worth, `redlib.modelcard` measures."""

from redlib.tabletop.questions import ONE_WORD, TASKS, Question, questions
from redlib.tabletop.world import Scene, scenes

__all__ = ["ONE_WORD", "TASKS", "Question", "Scene", "questions", "scenes"]
