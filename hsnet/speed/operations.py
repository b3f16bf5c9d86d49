"""How many operations a piece of work starts, how many of them make the processor wait, and which code that was."""

from collections import Counter
from collections.abc import Callable

from torch.utils._python_dispatch import TorchDispatchMode

READING = {"aten::_local_scalar_dense", "aten::nonzero"}  # the processor waits for what they return


class Operations(TorchDispatchMode):
    """Within, operations are counted by name, on any device; views, which start nothing on it, are not.

    Attributes:
        names: how often each was started.
    """

    def __init__(self):
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().partition(".")[0]
        if not function.is_view and name not in ("aten::_unsafe_view", "aten::detach"):
            self.names[name] += 1
        return function(*args, **(kwargs or {}))


def count_operations(work: Callable[[], object]) -> dict[str, int]:
    """`operations` that one call starts and, among them, those `reading` back from the device."""
    with Operations() as counted:
        work()
    return {"operations": counted.names.total(), "reading": sum(counted.names[name] for name in READING)}
