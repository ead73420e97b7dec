"""The sections of a run's TOML file: every setting with its unit, default and rule, in the order of `--help`."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from dgpt.config.section import Fraction, NotNegative, Positive, Section

SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"position": "learned", "norm": "layernorm", "mlp": "gelu", "bias": True, "tie_embeddings": True},
    "llama": {"position": "rope", "norm": "rmsnorm", "mlp": "swiglu", "bias": False, "tie_embeddings": False},
}


class ModelConfig(Section):
    shape: Literal["gpt2", "llama"] = "gpt2"
    """Family that sets the defaults of position, norm, mlp, bias and tie_embeddings."""
    n_layer: Positive = 12
    """Number of transformer blocks."""
    n_head: Positive = 12
    """Number of query heads."""
    n_kv_head: NotNegative = 0
    """Number of key and value heads (grouped-query attention); 0 means n_head."""
    n_embd: Positive = 768
    """Width of the residual stream."""
    n_ff: NotNegative = 0
    """Hidden width of the MLP; 0 means 4 * n_embd (gelu), or 8/3 * n_embd rounded up to 256 (swiglu)."""
    seq_len: Positive = 1024
    """Context length, in tokens."""
    vocab_size: NotNegative = 0
    """Number of token ids; 0 takes it from the prepared data."""
    vocab_multiple: Positive = 64
    """The embedding has vocab_size rounded up to this multiple of rows, so that tp can divide it."""
    position: Literal["learned", "rope"] = "learned"
    """Position encoding."""
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """Normalisation before each sublayer."""
    mlp: Literal["gelu", "swiglu"] = "gelu"
    """Activation of the MLP."""
    bias: bool = True
    """Biases in linear layers and LayerNorm."""
    tie_embeddings: bool = True
    """One matrix for the token embedding and the output head."""
    dropout: Fraction = 0.0
    """Probability of zeroing an activation in training."""
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    """Base of the rotary frequencies."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added to the variance in a norm."""
    init_std: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of initial weights; residual projections get it divided by sqrt(2 * n_layer)."""

    @model_validator(mode="before")
    @classmethod
    def fill_from_shape(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values  # no table: for the check of types to say so
        return SHAPES.get(str(values.get("shape", "gpt2")), {}) | values

    @model_validator(mode="after")
    def check_heads(self) -> Self:
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd = {self.n_embd} must be a multiple of n_head = {self.n_head}; change one of them")
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head = {self.n_head} must be a multiple of n_kv_head = {self.kv_heads}; change one")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"n_embd / n_head = {self.head_dim} must be even with position = 'rope'; change n_head")
        return self

    @property
    def kv_heads(self) -> int:
        return self.n_kv_head or self.n_head

    @property
    def head_dim(self) -> int:
        return self.n_embd // self.n_head

    @property
    def ff_width(self) -> int:
        return self.n_ff or (4 * self.n_embd if self.mlp == "gelu" else -(-8 * self.n_embd // 3 // 256) * 256)

    @property
    def padded_vocab_size(self) -> int:
        return -(-self.vocab_size // self.vocab_multiple) * self.vocab_multiple


class OptimizerConfig(Section):
    lr: Annotated[float, Field(gt=0)] = 6e-4
    """Peak learning rate of AdamW."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled decay of matrices and embeddings; norms and biases have none."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 turns clipping off."""


class ScheduleConfig(Section):
    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    """Shape after the warmup: cosine to min_lr, warmup-stable-decay, or constant."""
    warmup_steps: NotNegative = 100
    """Steps of linear growth from 0 to lr."""
    decay_steps: NotNegative = 0
    """Length of the final linear decay of wsd, in steps; 0 means a tenth of training.steps."""
    min_lr: Annotated[float, Field(ge=0)] = 6e-5
    """Learning rate at the last step."""


class WaitingConfig(Section):
    """How long ranks wait for each other."""

    first_step_timeout_seconds: Positive = 600
    """Until the first step is done, a collective that takes longer ends the job."""
    timeout_seconds: Positive = 120
    """After the first step, a collective that takes longer ends the job; two steps may always take as long."""
    hang_seconds: NotNegative = 90
    """When ranks do not move for so long, the agents name who keeps the others waiting, and restart; 0 never."""


class ParallelConfig(WaitingConfig):
    tp: Positive = 1
    """Tensor parallel degree; consecutive ranks, so keep it inside a node."""
    sequence_parallel: bool = False
    """Shard norms and residual activations over the TP group along the sequence (arXiv:2205.05198)."""
    zero_stage: Literal[0, 1, 2, 3] = 1
    """Sharded over the data parallel group: 1 optimizer state, 2 also gradients, 3 also weights."""
    offload_optimizer: bool = False
    """Keep the optimizer state in host memory (ZeRO 1 to 3 on GPUs)."""
    reduce_dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Data type in which gradients are summed over ranks; auto takes the compute data type."""
    bucket_tokens: NotNegative = 0
    """Elements of a gradient bucket; 0 fits it to the model."""
    zero_hpz_partition_size: Positive = 1
    """ZeRO++: ranks of a secondary weight partition, normally the GPUs of a node (ZeRO 3)."""
    zero_quantized_weights: bool = False
    """ZeRO++: gather weights in 8 bit (ZeRO 3)."""
    zero_quantized_gradients: bool = False
    """ZeRO++: reduce gradients in 4 bit (ZeRO 3)."""
    zero_extra: dict[str, Any] = Field(default={})
    """More keys for DeepSpeed's zero_optimization; a key that dgpt derives itself is refused."""


class ActivationCheckpointingConfig(Section):
    policy: Literal["none", "full", "selective"] = "none"
    """Recompute in backward: nothing, every block, or what selective_every says."""
    selective_every: NotNegative = 0
    """selective: every k-th block; 0 recomputes the attention of every block only."""
    offload: bool = False
    """Keep the saved block inputs in host memory."""


class PrecisionConfig(Section):
    dtype: Literal["auto", "bf16", "fp32"] = "auto"
    """Compute type; master weights and moments are fp32. auto: bf16 where the device has it in hardware."""
    float32_matmul: Literal["highest", "high"] = "highest"
    """'high' lets fp32 products run in TF32 on GPUs."""


class TrainingConfig(Section):
    steps: Positive = 1000
    """Optimizer steps of the whole run."""
    global_batch_size: Positive = 64
    """Sequences per optimizer step, over all ranks."""
    micro_batch_size: Positive = 8
    """Sequences per forward pass on one data parallel rank."""
    eval_every_steps: NotNegative = 250
    """Steps between evaluations on the held-out split; 0 never."""
    eval_samples: Positive = 256
    """Sequences per evaluation, at most."""
    loss_chunk_tokens: Positive = 1024
    """Tokens whose logits are held at once."""
    z_loss: Annotated[float, Field(ge=0)] = 0.0
    """Weight of log(Z)^2 in the loss (arXiv:2204.02311, section 5)."""
    compile: bool = False
    """torch.compile each block."""


class CheckpointConfig(Section):
    every_steps: NotNegative = 500
    """Steps between checkpoints; 0 saves only at the end and at a stop."""
    keep_last: Positive = 3
    """Newest checkpoints to keep."""
    keep_every: NotNegative = 0
    """Keep each checkpoint whose step is a multiple of this for good; 0 none."""


class ResumeConfig(Section):
    allow_data_change: bool = False
    """Go on although the data, the tokenizer or their order differ from those of the checkpoint."""
    stale_lock_seconds: Positive = 60
    """A job that holds the run folder counts as dead when it gave no sign of life for so long."""


class SlurmConfig(Section):
    preflight: bool = True
    """Examine the nodes of a job before its ranks start (`dgpt doctor`)."""
    exclude_after: NotNegative = 2
    """The next start leaves a node out that the run failed on so often; 0 never."""
    exclude_hours: Annotated[float, Field(gt=0)] = 24.0
    """How long such a node is left out after its last failure."""


class LoggingConfig(Section):
    every_steps: Positive = 10
    """Steps between console lines, metrics.jsonl rows and TensorBoard points."""
    tensorboard: bool = True
    """Write TensorBoard events to run_dir/tensorboard."""
    sample_every_steps: NotNegative = 0
    """Steps between sample texts in TensorBoard; 0 never."""
    sample_prompt: str = ""
    """Prompt of the sample texts."""
    sample_tokens: Positive = 64
    """Length of a sample text, in tokens."""
    profile_steps: tuple[NotNegative, ...] = ()
    """Steps of which a torch profiler trace is written to run_dir/profile."""
    peak_tflops: Annotated[float, Field(ge=0)] = 0.0
    """Peak of one device for MFU, in TFLOP/s; 0 looks the device up in a table."""
