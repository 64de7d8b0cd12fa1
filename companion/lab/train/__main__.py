"""The command line of one training run: ``python -m companion.lab.train``, or ``torchrun ... -m`` and the same."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

import torch

from companion.lab import checkpoints, data, distributed
from companion.lab.train.ending import Ending
from companion.lab.train.recipes import RECIPES

EPILOG = """recipes and their losses (the first is the default):
{recipes}

one process:            python -m companion.lab.train --data digits --steps 200
two workers, one batch: torchrun --standalone --nproc_per_node=2 -m companion.lab.train --data digits --steps 200

Workers share each batch: whatever their number, loss, gradient and result are those of one process, up to rounding.
A run that was stopped, in whatever way, goes on from its checkpoint when the same command is given again.
To read the result: torch.load(OUT, map_location="cpu", weights_only=True), a dictionary with the encoder's state in
"model", "steps", "losses" and "seconds" of its history, and what was asked for.
"""


class Parser(argparse.ArgumentParser):
    """One that says what is wrong in one sentence, and under torchrun once."""

    def error(self, message: str) -> NoReturn:
        """Say it, and leave with status 2."""
        Ending(()).error(f"{message}; --help says what there is")
        sys.exit(2)


def parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    lines = [f"  {name:<18} {kind.says}\n{'':21}losses: {', '.join(kind.losses)}" for name, kind in RECIPES.items()]
    found = Parser(
        "python -m companion.lab.train",
        description="Train one network as the chapters do, without labels, and keep it with its history in a file.",
        epilog=EPILOG.format(recipes="\n".join(lines)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    say = found.add_argument
    say("--data", default="fashion-mnist", help=f"one of {', '.join(data.NAMES)} (default fashion-mnist)")
    say("--root", type=Path, help="folder of the data; by default where companion.lab.data fetches them to")
    say("--split", default="train", help='part of the data (default train; STL-10 also has "unlabeled")')
    say("--recipe", default="small", choices=RECIPES, metavar="NAME", help="one of those below (default small)")
    say("--loss", help="one of the recipe's losses")
    length = found.add_mutually_exclusive_group()
    length.add_argument("--steps", type=_count, help="number of updates (default the recipe's)")
    length.add_argument("--epochs", type=_count, help="the same as passes over the images")
    say("--batch", type=_count, help="positive pairs in one update, over all workers together (default the recipe's)")
    say("--seed", type=int, default=0, help="of weights, batches and views (default 0)")
    say(
        "--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: a GPU for each worker if there are any"
    )
    say("--bf16", action=argparse.BooleanOptionalAction, help="forward pass in bfloat16 where the device has it")
    say("--channels-last", action=argparse.BooleanOptionalAction, help="memory layout of images and convolutions")
    say("--log-every", type=_count, help="updates between two looks at the loss")
    say("--checkpoint-every", type=_count, help="updates between two checkpoints")
    say("--checkpoint", type=Path, help="file to go on from (default OUT with .checkpoint.pt at its end)")
    say("--out", type=Path, help="file of the result (default _build/train/DATA-RECIPE-LOSS-SEED.pt)")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Train one network; 0 if it went well, else one sentence on stderr."""
    arguments = sys.argv[1:] if arguments is None else arguments
    given = parser().parse_args(arguments)
    losses = RECIPES[given.recipe].losses
    given.loss = given.loss or losses[0]
    if given.loss not in losses:
        parser().error(f"--loss: expected one of {', '.join(losses)}, found {given.loss!r}")
    given.out = given.out or Path("_build/train") / f"{given.data}-{given.recipe}-{given.loss}-{given.seed}.pt"
    given.checkpoint = given.checkpoint or given.out.with_suffix(".checkpoint.pt")
    ending = Ending(arguments)
    ending.checkpoint = given.checkpoint
    with ending.terminated():
        try:
            print(_train(given), end="", flush=True)
        except (ValueError, FloatingPointError, OSError) as error:
            ending.error(str(error))
            return 1
        except distributed.WorkerLostError as error:
            ending.stopped(str(error))
            return 1
        except torch.cuda.OutOfMemoryError:
            ending.error("the GPU's memory is too small for this batch; take a smaller --batch or more workers")
            return 1
        except KeyboardInterrupt:
            ending.stopped("interrupted")
            return 130
    distributed.leave()
    return 0


def _train(given: argparse.Namespace) -> str:
    """Train, let worker 0 write the result, and return its closing line; an empty text on the others."""
    device = distributed.start(given.device)
    with distributed.one_first():  # it fetches, the others find the data there
        images = data.load(given.data, given.split, given.root)
    changes = {name: getattr(given, name) for name in ("bf16", "channels_last", "log_every", "checkpoint_every")}
    label = f"{given.data} {given.split}, {given.recipe}, {given.loss}"
    kind = RECIPES[given.recipe]
    recipe = kind.recipe(
        images, given.loss, steps=given.steps, epochs=given.epochs, batch_size=given.batch, label=label, **changes
    )
    distributed.own_rows(recipe.options.batch_size)  # refuses before anything is built
    model = kind.run(recipe, images, given.seed, given.checkpoint, device)
    if distributed.rank():
        return ""
    state = torch.load(given.checkpoint, map_location="cpu", weights_only=True)
    result = {
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
        "steps": torch.arange(1, recipe.options.steps + 1),
        "losses": state["losses"],
        "seconds": state["seconds"],
        "options": state["options"],
        "workers": distributed.workers(),
    }
    checkpoints.write(given.out, result)
    done, count, mean = state["options"], distributed.workers(), float(state["losses"][-10:].mean())
    how = f"by {count} worker{'s' * (count > 1)} on {device.type} in {'bfloat16' if done['bf16'] else 'float32'}"
    return (
        f"{label}, seed {given.seed}: {done['steps']} updates of {done['batch_size']} pairs in "
        f"{state['seconds']:.1f} s {how}, mean of the last ten losses {mean:.4f}; {given.out}\n"
    )


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, found {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
