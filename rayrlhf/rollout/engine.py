"""One vLLM engine in this process: draws responses, and follows the learner's versions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import AutoConfig

from rayrlhf.algorithms.seeds import derive_seed
from rayrlhf.config import RolloutConfig, SamplingConfig
from rayrlhf.errors import ConfigError, DataError, ModelError, WeightSyncError
from rayrlhf.models.device import resolve_dtype_name
from rayrlhf.rollout.environment import enter_engine_process, runs_eagerly
from rayrlhf.rollout.limits import keeps_states
from rayrlhf.rollout.wording import VLLM_ERRORS, reason_of
from rayrlhf.types import (
    Begun,
    PolicyVersion,
    RolloutRequest,
    SampleId,
    Trajectory,
    VersionSpan,
    WeightManifest,
)

if TYPE_CHECKING:
    from vllm import LLM, SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput

TRANSFER_BACKEND = "object_store"
TEMPERATURES = (0.01, 2.0)
"""What vLLM samples at; it would raise a lower temperature in silence, and engine and learner would part."""
SHUT_DOWN = "it was shut down"


class RolloutEngine:
    """Draws trajectories from the policy in `model_dir`, version 0, until `apply_weights` brings a newer one.

    The engine takes its process over (memory binding, the number of threads): it is not to share one with a learner,
    nor with another engine that is still alive.
    """

    def __init__(
        self,
        model_dir: str,
        *,
        sampling: SamplingConfig,
        rollout: RolloutConfig,
        max_length: int,
        device: str,
        eos_token_ids: list[int],
        seed: int,
    ) -> None:
        low, high = TEMPERATURES
        if not low <= sampling.temperature <= high:
            raise ConfigError(
                f"sampling.temperature={sampling.temperature} is outside what the engine samples at, {low} to {high}."
            )
        self._sampling = sampling
        self._max_length = max_length
        self._eos = tuple(sorted(set(eos_token_ids)))
        self._broken: str | None = None
        self._requests: dict[str, RolloutRequest] = {}
        """Samples in work, by the names vLLM knows them under."""
        self._version: PolicyVersion = 0
        self._manifest: WeightManifest | None = None
        self._llm = _start(model_dir, rollout, max_length=max_length, device=device, seed=seed)
        self._llm.init_weight_transfer_engine({"init_info": {}})
        self._llm.update_weight_version("0")
        self._vocab_size = self._llm.model_config.get_vocab_size()

    @property
    def version(self) -> PolicyVersion:
        """The version that responses are drawn from."""
        return self._version

    @property
    def running(self) -> int:
        """Samples in work."""
        return len(self._requests)

    def check(self, request: RolloutRequest) -> None:
        """DataError for a prompt that cannot be drawn from."""
        ids = request.prompt_ids
        if not 0 < ids.size < self._max_length:
            raise DataError(
                f"The prompt of sample {request.sample_id} has {ids.size} tokens; with model.max_length={self._max_length} "
                f"a prompt has 1 to {self._max_length - 1}, to leave room for a response."
            )
        if ids.min() < 0 or ids.max() >= self._vocab_size:
            raise DataError(
                f"The prompt of sample {request.sample_id} holds token ids from {ids.min()} to {ids.max()}, "
                f"but the policy's vocabulary has {self._vocab_size}."
            )

    def add(self, request: RolloutRequest) -> None:
        """Take a sample into work, beside those that are; it is drawn by the steps that follow."""
        self._refuse_if_broken()
        self.check(request)
        name = str(request.sample_id)
        ids = request.prompt_ids.tolist()
        if request.begun is not None:
            ids += request.begun.response_ids.tolist()
        # The salt keeps what an older version cached of the same prompt apart, where running samples keep their cache.
        prompt = {"prompt_token_ids": ids, "cache_salt": str(self._version)}
        with self._fatal("a request was refused"):
            self._llm.llm_engine.add_request(name, prompt, self._sampling_params(request))
        self._requests[name] = request

    def step(self) -> list[Trajectory]:
        """One more token for every sample in work; those that are finished by it."""
        self._refuse_if_broken()
        with self._fatal("generation was cut short"):
            return [self._finished(output) for output in self._llm.llm_engine.step() if output.finished]

    def withdraw(self) -> list[RolloutRequest]:
        """Take every sample out of work, with what is drawn of it, to be gone on with elsewhere."""
        self._refuse_if_broken()
        with self._fatal("samples were withdrawn"):
            return [self._withdrawn(name) for name in list(self._requests)]

    def generate(self, requests: list[RolloutRequest]) -> list[Trajectory]:
        """Draw one response for each request, in order; DataError, before anything runs, for a prompt that does not fit."""
        self._refuse_if_broken()
        for request in requests:
            self.check(request)
        for request in requests:
            self.add(request)
        drawn: dict[SampleId, Trajectory] = {}
        while self._requests:
            drawn |= {trajectory.sample_id: trajectory for trajectory in self.step()}
        return [drawn[request.sample_id] for request in requests]

    def apply_weights(
        self, manifest: WeightManifest, buckets: list[np.ndarray], *, recompute: bool = True
    ) -> PolicyVersion:
        """Load a newer version as one transaction: load, check that all arrived, see to the caches, commit.

        Samples in work go on under it. With `recompute` their keys and values are computed anew, so that every further
        token is drawn from the new version; without, they go on over what the old version cached, and a token's log-prob
        is that of what was sampled from, which is no single version's. The version already in force is acknowledged
        without loading. A refusal (an older version) leaves the engine as it was; a failure once loading has begun
        leaves it half-loaded, so that every later call raises WeightSyncError until the worker is replaced.
        """
        self._refuse_if_broken()
        if manifest == self._manifest:
            return self._version
        if manifest.version < self._version or (manifest.version == self._version and self._manifest is not None):
            raise WeightSyncError(
                f"The engine holds version {self._version} and was given version {manifest.version} with other weights; "
                "versions only move forward."
            )
        with self._fatal(f"loading version {manifest.version} failed"):
            self._load(manifest, buckets, recompute=recompute)
        self._version, self._manifest = manifest.version, manifest
        return self._version

    def shutdown(self) -> None:
        """Release the engine and its memory; idempotent, and the engine is of no use afterwards."""
        if self._broken == SHUT_DOWN:
            return
        self._broken = SHUT_DOWN
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm

    def _load(self, manifest: WeightManifest, buckets: list[np.ndarray], *, recompute: bool) -> None:
        try:
            self._llm.start_weight_update()
            self._llm.update_weights({"update_info": {"manifest": manifest, "buckets": buckets}})
            self._llm.finish_weight_update()
        except WeightSyncError:
            raise
        except VLLM_ERRORS as error:
            raise WeightSyncError(f"vLLM could not take over version {manifest.version}: {reason_of(error)}") from error
        if (recompute or not self._requests) and not self._llm.reset_prefix_cache(reset_running_requests=True):
            raise WeightSyncError(
                f"The prefix cache still holds keys and values of version {self._version} after version "
                f"{manifest.version} was loaded; replace the worker."
            )
        self._llm.update_weight_version(str(manifest.version))

    @contextmanager
    def _fatal(self, consequence: str) -> Iterator[None]:
        """An exception that leaves this block leaves the engine in an unknown state, whatever it was."""
        self._broken = consequence
        yield
        self._broken = None

    def _refuse_if_broken(self) -> None:
        if self._broken is not None:
            raise WeightSyncError(f"This engine is not in a sound state, because {self._broken}; replace the worker.")

    def _sampling_params(self, request: RolloutRequest) -> "SamplingParams":
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        begun = 0 if request.begun is None else request.begun.response_ids.size
        return SamplingParams(
            temperature=self._sampling.temperature,
            max_tokens=min(self._sampling.max_new_tokens, self._max_length - request.prompt_ids.size) - begun,
            # The same numbers again would tie what follows to what is drawn already.
            seed=derive_seed(request.seed, "begun", begun) if begun else request.seed,
            # vLLM adds the end tokens of the model's generation_config.json otherwise, whatever the engine's setting.
            ignore_eos=True,
            stop_token_ids=list(self._eos),
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _finished(self, output: "RequestOutput") -> Trajectory:
        request = self._requests.pop(output.request_id)
        drawn = self._drawn(request, output.outputs[0])
        return Trajectory(
            sample_id=request.sample_id,
            prompt_ids=request.prompt_ids,
            response_ids=drawn.response_ids,
            rollout_logprobs=drawn.rollout_logprobs,
            finish="eos" if int(drawn.response_ids[-1]) in self._eos else "length",
            version_spans=drawn.version_spans,
        )

    def _withdrawn(self, name: str) -> RolloutRequest:
        from vllm.v1.engine import FinishReason

        request = self._requests.pop(name)
        processor = self._llm.llm_engine.output_processor
        (state,) = (processor.request_states[internal] for internal in processor.external_req_ids[name])
        # What vLLM itself answers a request with that is aborted.
        output = state.make_request_output([], None, FinishReason.ABORT, None)
        self._llm.llm_engine.abort_request([name])
        assert output is not None
        if not output.outputs[0].token_ids:
            return request
        return replace(request, begun=self._drawn(request, output.outputs[0]))

    def _drawn(self, request: RolloutRequest, output: "CompletionOutput") -> Begun:
        """What is drawn of a sample, on this engine and on those before it."""
        response_ids = np.asarray(output.token_ids, dtype=np.int32)
        flat: Any = output.logprobs
        rollout_logprobs = np.asarray(flat.logprobs, dtype=np.float32)
        assert flat.token_ids == response_ids.tolist(), "the log-probs are of other tokens than the sampled ones"
        if not np.isfinite(rollout_logprobs).all() or response_ids.max() >= self._vocab_size:
            raise WeightSyncError(
                f"Sample {request.sample_id} holds a non-finite log-prob or a token id outside the vocabulary of "
                f"{self._vocab_size}: version {self._version} of the weights is broken."
            )
        spans = self._version_spans(output, len(response_ids))
        if request.begun is None:
            return Begun(response_ids=response_ids, rollout_logprobs=rollout_logprobs, version_spans=spans)
        return Begun(
            response_ids=np.concatenate([request.begun.response_ids, response_ids]),
            rollout_logprobs=np.concatenate([request.begun.rollout_logprobs, rollout_logprobs]),
            version_spans=joined(request.begun.version_spans, spans),
        )

    def _version_spans(self, output: "CompletionOutput", tokens: int) -> tuple[VersionSpan, ...]:
        spans = tuple(
            VersionSpan(version=int(span.version), start=span.start, end=span.end)
            for span in output.weight_versions or ()
            if span.end > span.start
        ) or (VersionSpan(version=self._version, start=0, end=tokens),)
        bounds = [0, *(span.end for span in spans)]
        assert [span.start for span in spans] == bounds[:-1], "the version spans leave a gap or overlap"
        assert bounds[-1] == tokens, "the version spans cover other tokens than the response"
        return spans


def joined(first: tuple[VersionSpan, ...], then: tuple[VersionSpan, ...]) -> tuple[VersionSpan, ...]:
    """The spans of a response whose second part, with spans of its own, another engine drew."""
    offset = first[-1].end
    moved = [VersionSpan(version=s.version, start=s.start + offset, end=s.end + offset) for s in then]
    if moved and moved[0].version == first[-1].version:
        whole = VersionSpan(version=first[-1].version, start=first[-1].start, end=moved[0].end)
        return (*first[:-1], whole, *moved[1:])
    return (*first, *moved)


def _keeps_states(model_dir: str) -> bool:
    return keeps_states(AutoConfig.from_pretrained(model_dir))


def _start(model_dir: str, rollout: RolloutConfig, *, max_length: int, device: str, seed: int) -> "LLM":
    enter_engine_process(rollout, device=device)
    from vllm import LLM
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if TRANSFER_BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(TRANSFER_BACKEND, "rayrlhf.rollout.transfer", "ObjectStoreTransfer")
    try:
        return LLM(
            model=model_dir,
            skip_tokenizer_init=True,
            dtype=resolve_dtype_name(rollout.dtype, device),
            max_model_len=max_length,
            seed=seed,
            # No sampling defaults from the model's generation_config.json: the distribution is the configuration's.
            generation_config="vllm",
            logprobs_mode="processed_logprobs",
            weight_transfer_config={"backend": TRANSFER_BACKEND},
            # A prompt read in parts draws a token too many, which vLLM takes back from CUDA's generators alone.
            enable_chunked_prefill=False if device == "cpu" else None,
            # What a model with states caches of a prefix, it can only go on with in parts.
            enable_prefix_caching=rollout.prefix_caching and not (device == "cpu" and _keeps_states(model_dir)),
            enforce_eager=runs_eagerly(rollout, device=device),
            max_num_seqs=rollout.max_num_seqs,
            gpu_memory_utilization=rollout.gpu_memory_utilization,
            kv_cache_memory_bytes=int(rollout.kv_cache_gib * 2**30) if device == "cpu" else None,
            use_tqdm_on_load=False,
        )
    except VLLM_ERRORS as error:
        raise ModelError(
            f"vLLM does not start on the policy in {model_dir} with model.max_length={max_length} and "
            f"rollout.kv_cache_gib={rollout.kv_cache_gib}: {reason_of(error)}"
        ) from error
