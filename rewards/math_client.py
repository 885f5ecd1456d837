"""Client of `rewards/math_worker.py`: one warm process that is killed when a comparison takes too long."""

from typing import Literal

from rewards.warm_worker import DiedTwice, TookTooLong, WarmWorker

Operation = Literal["check", "compare", "opinion"]
Verdict = Literal["equal", "different", "bad_gold", "bad_answer", "too_slow"]


class MathWorker(WarmWorker):
    """math-verify in a process of its own."""

    def __init__(self) -> None:
        super().__init__("rewards.math_worker", what="the math-verify worker")

    async def verdict(self, operation: Operation, *, gold: str, answer: str = "", seconds: float) -> Verdict:
        """Ask about LaTeX expressions; `too_slow` after `seconds`. Raises RuntimeError when no worker can be started."""
        try:
            reply = await self.ask({"op": operation, "gold": gold, "answer": answer}, seconds=seconds)
        except (TookTooLong, DiedTwice):
            return "too_slow"
        verdict: Verdict = reply["verdict"]
        return verdict
