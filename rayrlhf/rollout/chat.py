"""A vLLM engine in this process that answers questions with a frozen model."""

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from rayrlhf.config import RolloutConfig
from rayrlhf.data.exchange import encode_prompt, end_of_turn
from rayrlhf.data.fields import UnusableRowError
from rayrlhf.data.tokenizer import load_tokenizer
from rayrlhf.errors import ModelError
from rayrlhf.models.device import resolve_dtype_name
from rayrlhf.models.load import end_token_ids
from rayrlhf.rollout.environment import enter_engine_process
from rayrlhf.rollout.wording import VLLM_ERRORS, reason_of
from rayrlhf.types import Unanswered

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput

_SHARE_ASKED_FOR = 0.01
"""Of a GPU's memory, which vLLM demands to be free at the start; what it takes is the weights and the given cache."""
_PLAIN_ENDING = "\n\nAnswer:"
"""After a question to a model without a chat template."""


class ChatEngine:
    """A causal language model that is asked one question at a time, each a user's turn of its chat template.

    The engine takes its process over, as that of `RolloutEngine`. With `repeatable` what it answers depends on nothing but
    the questions of a unit.
    """

    def __init__(
        self, model: str, *, process: RolloutConfig, max_length: int, kv_cache_gib: float, device: str, repeatable: bool
    ) -> None:
        """`max_length` tokens of a question and its answer; `process` has the threads and the dtype."""
        self._tokenizer = load_tokenizer(model)
        self._max_length = max_length
        self._repeatable = repeatable
        turn = end_of_turn(self._tokenizer)
        self._ends = sorted({*end_token_ids(model, self._tokenizer), *([] if turn is None else [turn])})
        self._tokens_of = cache(partial(answer_tokens, self._tokenizer))
        enter_engine_process(process, device=device)
        from vllm import LLM

        try:
            self._llm: Any = LLM(
                model=model,
                skip_tokenizer_init=True,
                dtype=resolve_dtype_name(process.dtype, device),
                max_model_len=max_length,
                generation_config="vllm",
                enforce_eager=device == "cpu",
                max_num_seqs=process.max_num_seqs,
                gpu_memory_utilization=_SHARE_ASKED_FOR,
                kv_cache_memory_bytes=int(kv_cache_gib * 2**30),
                use_tqdm_on_load=False,
            )
        except VLLM_ERRORS as error:
            raise ModelError(
                f"vLLM does not start on the judge {model} with max_length={max_length} and kv_cache_gib={kv_cache_gib:g}: "
                f"{reason_of(error)}"
            ) from error

    def choose(
        self, questions: Sequence[str], options: tuple[str, str], *, units: Sequence[int]
    ) -> list[float | Unanswered]:
        """The probability of the first of two answers of one letter, of the two: by the first token, however it is spaced."""
        from vllm import SamplingParams

        first, second = (self._tokens_of(option) for option in options)
        sampling = SamplingParams(
            temperature=0.0, max_tokens=1, logprob_token_ids=[*first, *second], detokenize=False, ignore_eos=True
        )

        def share(output: "CompletionOutput") -> float | Unanswered:
            assert output.logprobs is not None
            found = {token: entry.logprob for token, entry in output.logprobs[0].items()}
            ahead = _total([found[token] for token in first]) - _total([found[token] for token in second])
            if np.isnan(ahead):
                return Unanswered(f"it gave the log-probs {[found[token] for token in (*first, *second)]}")
            return float(0.5 * (1.0 + np.tanh(0.5 * ahead)))

        return self._answers(questions, units, sampling, share)

    def write(self, questions: Sequence[str], *, max_tokens: int, units: Sequence[int]) -> list[str | Unanswered]:
        """What it writes, the likeliest token each time, up to `max_tokens` and to its length."""
        from vllm import SamplingParams

        sampling = SamplingParams(
            temperature=0.0, max_tokens=max_tokens, stop_token_ids=self._ends, ignore_eos=True, detokenize=False
        )
        return self._answers(questions, units, sampling, self._text)

    def shutdown(self) -> None:
        """Release the engine and its memory."""
        self._llm.llm_engine.engine_core.shutdown()

    def _answers(
        self, questions: Sequence[str], units: Sequence[int], sampling: "SamplingParams", read: Any
    ) -> list[Any]:
        answers: list[Any] = [self._prompt(question) for question in questions]
        for places in _by_unit(units if self._repeatable else [0] * len(units)):
            if self._repeatable:
                self._llm.reset_prefix_cache()  # What is read from it was computed beside other questions.
            asked = [place for place in places if not isinstance(answers[place], Unanswered)]
            outputs = self._llm.generate([answers[place] for place in asked], sampling, use_tqdm=False) if asked else []
            for place, output in zip(asked, outputs, strict=True):
                answers[place] = read(output.outputs[0])
        return answers

    def _prompt(self, question: str) -> dict[str, list[int]] | Unanswered:
        try:
            ids = question_ids(self._tokenizer, question)
        except UnusableRowError as reason:
            return Unanswered(f"the judge's chat template cannot write the question: {reason}")
        if len(ids) >= self._max_length:
            told = f"the question has {len(ids)} tokens and max_length={self._max_length} leaves no room to answer"
            return Unanswered(told)
        return {"prompt_token_ids": ids.tolist()}

    def _text(self, output: "CompletionOutput") -> str:
        return str(self._tokenizer.decode(list(output.token_ids), skip_special_tokens=True))


def answer_tokens(tokenizer: PreTrainedTokenizerBase, option: str) -> list[int]:
    """Every token that is this text but for space around it; ModelError without one."""
    texts = tokenizer.batch_decode([[number] for number in range(len(tokenizer))], clean_up_tokenization_spaces=False)
    found = [number for number, text in enumerate(texts) if text.strip() == option]
    if not found:
        raise ModelError(
            f"The tokenizer of the judge {tokenizer.name_or_path} has no token for the answer {option}: set verdict: text."
        )
    return found


def question_ids(tokenizer: PreTrainedTokenizerBase, question: str) -> np.ndarray:
    """Ids [P] of a question, as a user's turn where there is a chat template; control tokens in its text are text."""
    if tokenizer.chat_template is None:
        return encode_prompt(tokenizer, question + _PLAIN_ENDING)
    return encode_prompt(tokenizer, [{"role": "user", "content": question}])


def _by_unit(units: Sequence[int]) -> Iterator[list[int]]:
    for unit in dict.fromkeys(units):
        yield [place for place, own in enumerate(units) if own == unit]


def _total(logprobs: Sequence[float]) -> float:
    return float(np.logaddexp.reduce(logprobs))
