"""The lectures' practice of training: recipes as records, and the loop, checks and pictures around them.

>>> from cnnkern.training import RECIPES, Trainer, data
>>> trainer = Trainer(model, data.digits(), RECIPES["digits"], out=Path("run"))
>>> history = trainer.fit()
>>> loss, accuracy = trainer.test()
"""

from cnnkern.training.recipe import Recipe
from cnnkern.training.recipes import RECIPES
from cnnkern.training.trainer import Trainer

__all__ = ["RECIPES", "Recipe", "Trainer"]
