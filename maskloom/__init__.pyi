from maskloom.door.commands import change as change
from maskloom.door.commands import evaluate as evaluate
from maskloom.door.commands import run as run
from maskloom.door.commands import train as train
from maskloom.door.comparisons import Changes as Changes
from maskloom.door.comparisons import Evaluation as Evaluation
from maskloom.door.outputs import Output as Output
from maskloom.door.outputs import open as open  # noqa: A004
from maskloom.door.segmentation import Segmentation as Segmentation
from maskloom.door.segmentation import segment as segment
from maskloom.segcore.errors import FitError as FitError
from maskloom.segcore.errors import ImageError as ImageError
from maskloom.segcore.errors import MaskloomError as MaskloomError
from maskloom.segcore.errors import RecipeError as RecipeError
from maskloom.segcore.errors import RunError as RunError

__version__: str
