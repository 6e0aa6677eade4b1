"""Which matrices of a model have one vector for each token.

The structure of the model is asked first and its names last: a table whose weight is also a
head's, then a table of a head's shape, then what the model's own methods return, then names. What
this cannot tell it refuses to guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

NAME_THEM = "param_groups(model, embeddings=[model.token_embedding, model.output_head])"


def _words(text: str) -> list[str]:
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)
    return [word for word in re.split(r"[^a-z]+", spaced.lower()) if word]


# Words in the names of tables that code bases give to what is never a token.
_NEVER_TOKENS = frozenset(
    _words(
        "wpe pe pos position positions positional absolute sinusoidal rotary relative rel distance "
        "bias segment segments seg type types time timestep timesteps freq row column col level "
        "levels query queries patch patches cls class label labels mask ngram latent latents "
        "register registers mem memory expert experts router point points reference norm scale "
        "shift"
    )
)
# To what is a token only where a head says so, as in models of sounds and pictures.
_SELDOM_TOKENS = frozenset(
    _words(
        "lang quantize quantizer codebook image images pixel vision visual speaker task modality"
    )
)
# And to tokens. "words" alone, "inputs" and the like name too much else.
_TOKENS = frozenset(
    _words(
        "wte tok toks token tokens word vocab vocabulary subword src source tgt trg target encoder "
        "decoder"
    )
)
# Of modded-nanogpt and nanochat: what attention adds to its values for each token.
_VALUES = frozenset(_words("value values ve"))
# Say that something is embedded, not what.
_SAYS_NOTHING = frozenset(
    _words(
        "emb embs embed embeds embedded embedding embeddings embedder layer layers table tables "
        "lookup weight weights module modules to save base default original wrapped"
    )
)
# Heads, by names that are used for nothing else.
_HEADS = re.compile(r"(^|\.)(lm_heads?|embed_out|unembed|unembedding|to_logits|vocab_projector)\b")
_SIZES = ("vocab_size", "vocabulary_size", "padded_vocab_size", "n_vocab")
# Their own matrices are no heads, whatever their sizes.
_NO_HEADS = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention, nn.LayerNorm, nn.RMSNorm)
_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "module")


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix that a module multiplies with or looks up in.

    Attributes:
        path: the module's name, or the parameter's if it is not called weight.
        owner: the module.
        shape: of the matrix.
        parameters: its name in the model and the parameter; several if the matrix is computed.
        computed: by what; empty if the parameter is the matrix.
        lookup: whether the module looks up rows.
    """

    path: str
    owner: nn.Module
    shape: tuple[int, ...]
    parameters: dict[str, Tensor]
    computed: str
    lookup: bool

    @cached_property
    def key(self) -> int:
        """The same for two weights that are one parameter."""
        return id(self._parameter) if self._parameter is not None else id(self)

    @property
    def parameter(self) -> Tensor:
        """The parameter that is the matrix, or that the matrix is computed from row by row.

        Raises:
            ValueError: if there is none.
        """
        if self._parameter is None:
            shapes = {name: tuple(p.shape) for name, p in self.parameters.items()}
            largest = max(self.parameters, key=lambda name: self.parameters[name].numel())
            raise ValueError(
                f"the weight of {self.path!r} is computed by {self.computed} from {shapes}, none "
                "of which alone is the table of the tokens, so what should be coupled cannot be "
                "told: take it off the embedding before the optimizer is made, or name the matrix "
                f"that is to be coupled, as in embeddings=[{largest!r}]"
            )
        return self._parameter

    @property
    def _parameter(self) -> Tensor | None:
        if len(self.parameters) != 1:
            return None
        (parameter,) = self.parameters.values()
        return parameter if not self.computed or tuple(parameter.shape) == self.shape else None

    @property
    def known_axis(self) -> int | None:
        """The axis of the outputs, for layers that say how they store their weight."""
        names = (("out_features", "in_features"), ("nf", "nx"))
        for out, into in names:
            sizes = getattr(self.owner, out, None), getattr(self.owner, into, None)
            if sizes == self.shape:
                return 0
            if sizes == self.shape[::-1]:
                return 1
        return 0 if isinstance(self.owner, nn.Linear) else None

    def axes(self, tokens: int) -> list[int]:
        """The axes that have as many entries as there are tokens."""
        return [axis for axis, size in enumerate(self.shape) if size == tokens]

    def says(self, words: frozenset[str]) -> bool:
        """Whether one of these words is in the part of the name that says what it holds."""
        return not words.isdisjoint(_telling_words(self.path))


@dataclass(frozen=True, eq=False)
class Found:
    """A matrix with one vector for each token, and the axis along which the tokens lie."""

    weight: Weight
    vocabulary_dim: int


class Vocabulary:
    """The matrices of a model that have one vector for each token."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = list(_weights(model))
        self._layers = _layers_of_stacks(model)
        # Rows of one token have nothing to share, and are what a model without words is left with.
        self.tables = [w for w in self.weights if w.lookup and len(w.shape) == 2 and w.shape[0] > 1]
        self.others = [w for w in self.weights if not w.lookup and _may_be_head(w)]

    def find(self) -> list[Found]:
        """The token embeddings, input and output; empty if the model has none.

        Raises:
            ValueError: if it cannot be told which they are.
        """
        tables = self._token_tables()
        if not tables:
            return self._of_a_part()
        found = [Found(table, 0) for table in tables]
        heads = self._heads(tables)
        return _distinct([*found, *heads, *self._beside(tables, heads)])

    def of(self, module: nn.Module) -> list[Weight]:
        """The weights of a module; if it has none itself, those inside it, tables before others."""
        own = [w for w in self.weights if w.owner is module and len(w.shape) == 2]
        if own:
            return own
        inside = set(map(id, module.modules()))
        within = [w for w in [*self.tables, *self.others] if id(w.owner) in inside]
        tables = [w for w in within if w.lookup and not _called(w, _NEVER_TOKENS)]
        return tables or within

    def axis(self, weight: Weight) -> int:
        """The axis of the tokens in a matrix that is known to have one vector for each."""
        if weight.lookup:
            return 0
        sizes = {table.shape[0] for table in self.tables if not _called(table, _NEVER_TOKENS)}
        matching = [axis for axis, size in enumerate(weight.shape) if size in sizes]
        if len(matching) == 1:
            return matching[0]
        return weight.known_axis or 0

    # Tables

    def _token_tables(self) -> list[Weight]:
        elsewhere = {w.key for w in self.weights if not w.lookup}
        tied = [table for table in self.tables if table.key in elsewhere]
        # Whatever the tied one is called; from here on what is called a position is one.
        candidates = self._not_called(_NEVER_TOKENS | _SELDOM_TOKENS)
        answers = self._asked("get_input_embeddings", "get_output_embeddings")
        asked = [table for table in answers if table in candidates]
        sure = tied or self._by_shape(candidates, asked) or asked or self._by_name(candidates)
        if not sure:
            candidates = self._not_called(_NEVER_TOKENS)
            asked = [table for table in answers if table in candidates]
            sure = self._by_shape(candidates, asked) or asked
        keys = _keys(sure)
        # Methods that know nothing of the table that is a head's are not believed.
        if not keys.isdisjoint(_keys(asked)):
            keys |= _keys(asked)
        rows = {table.shape[0] for table in sure}
        inside = tuple(f"{table.path}." for table in sure)
        return [
            table
            for table in self.tables
            if table.key in keys
            or (
                table in candidates
                and (
                    (sure and table.says(_TOKENS))
                    or (table.shape[0] in rows and table.says(_VALUES))
                    or table.path.startswith(inside)
                )
            )
        ]

    def _not_called(self, words: frozenset[str]) -> list[Weight]:
        """The tables that have a name or a class without these words."""
        keys = {table.key for table in self.tables if not _called(table, words)}
        return [table for table in self.tables if table.key in keys]

    def _by_shape(self, candidates: list[Weight], asked: list[Weight]) -> list[Weight]:
        """The tables that have the shape of an output head, whichever way that is stored."""
        shaped = [table for table in candidates if self._exact(table)]
        both = [table for table in shaped if table.key in _keys(asked)]
        if both or not shaped:
            return both
        if asked:
            # A classifier may have as many labels as another table has rows.
            most = max(table.shape[0] for table in [*shaped, *asked])
            shaped = [table for table in [*shaped, *asked] if table.shape[0] == most]
        if len(_keys(shaped)) < 2:
            return shaped
        return [table for table in shaped if table.says(_TOKENS)] or _cannot_tell(shaped)

    def _by_name(self, candidates: list[Weight]) -> list[Weight]:
        # In a layer of a stack there are tables of distances.
        candidates = [
            table
            for table in candidates
            if table.says(_TOKENS) or not self._in_stack(table.path, 0)
        ]
        if len(_keys(candidates)) < 2:
            return candidates
        named = [table for table in candidates if table.says(_TOKENS)]
        return named or _cannot_tell(candidates)

    # Heads

    def _heads(self, tables: list[Weight]) -> list[Found]:
        keys = _keys(tables)
        rows = {table.shape[0] for table in tables}
        heads = [Found(w, 0) for w in self.weights if w.key in keys and not w.lookup]
        covered = {head.weight.shape[0] for head in heads}
        asked = [w for w in self._asked("get_output_embeddings") if not w.lookup]
        for weight in asked:
            matching = [axis for axis, size in enumerate(weight.shape) if size in rows]
            axis = matching[0] if len(matching) == 1 else weight.known_axis or 0
            heads.append(Found(weight, axis))
        if asked:
            return heads
        for module in self.model.modules():
            if isinstance(module, nn.AdaptiveLogSoftmaxWithLoss) and module.n_classes in rows:
                covered.add(module.n_classes)
                tail: Iterable[Any] = module.tail
                layers = [module.head, *(part[-1] for part in tail)]
                heads += [Found(w, 0) for layer in layers for w in self.of(layer)]
        for table in tables:
            if table.shape[0] not in covered:
                matching_heads = self._head_of(table)
                heads += matching_heads
                covered |= {table.shape[0]} if matching_heads else set()
        if not heads:
            # One row more or less, as of a token that is read and never predicted.
            named = [w for w in self.others if _HEADS.search(w.path) and _fits(w, tables)]
            heads = [Found(w, w.known_axis or 0) for w in named if w.known_axis is not None]
        return heads

    def _head_of(self, table: Weight) -> list[Found]:
        candidates = self._exact(table)
        if not candidates:
            # Of another width, as where a factorised embedding has a head of the full width.
            candidates = [
                found
                for found in self._with_rows(table)
                if found.weight.known_axis in (None, found.vocabulary_dim)
            ]
        distinct = _distinct(candidates)
        if len(distinct) > 1 and self._says_that_it_has_no_head():
            return []
        if len(distinct) > 1 and not all(_HEADS.search(found.weight.path) for found in distinct):
            # With as many bytes as coordinates, say, every projection looks like an output head.
            raise ValueError(
                f"cannot tell which of {sorted({f.weight.path for f in distinct})} is the output "
                f"head, since all have the shape {tuple(table.shape)} of the token embeddings, or "
                f"its transpose: name the embeddings, as in {NAME_THEM}"
            )
        for found in distinct:
            if found.weight.known_axis is None and len(found.weight.axes(table.shape[0])) > 1:
                raise ValueError(
                    f"cannot tell whether the rows or the columns of {found.weight.path!r}, of "
                    f"shape {found.weight.shape}, are tokens: name the embeddings, as in "
                    f"{NAME_THEM}, or make the groups yourself, with coupled=True and, where the "
                    "columns are tokens, vocabulary_dim=1"
                )
        return distinct

    def _exact(self, table: Weight) -> list[Found]:
        width = table.shape[1]
        return [f for f in self._with_rows(table) if f.weight.shape[1 - f.vocabulary_dim] == width]

    def _with_rows(self, table: Weight) -> list[Found]:
        """What has as many rows or columns as a table and is no layer of a stack beside it."""
        found = []
        for weight in self.others:
            axes = weight.axes(table.shape[0])
            if not axes or self._in_stack(weight.path, _common(weight.path, table.path)):
                continue
            if len(axes) > 1:
                axes = [weight.known_axis or 0]
            found.append(Found(weight, axes[0]))
        return found

    def _beside(self, tables: list[Weight], heads: list[Found]) -> list[Found]:
        """What else has an entry for each token in the module that holds a head.

        MobileBERT's head is its tied table and a further matrix; a head can be adapted by LoRA.
        """
        rows = {table.shape[0] for table in tables}
        found = []
        for head in heads:
            inside = _widest_without(head.weight.path, tables)
            for weight in self.others:
                axes = [axis for axis, size in enumerate(weight.shape) if size in rows]
                if (
                    len(axes) == 1
                    and _within(weight.path, inside)
                    and not self._in_stack(weight.path, inside.count(".") + 1)
                ):
                    found.append(Found(weight, axes[0]))
        return found

    # Models without a table

    def _of_a_part(self) -> list[Found]:
        """The embeddings of a stage of a pipeline, or of a model whose tables are no modules."""
        asked = [Found(w, w.known_axis or 0) for w in self._asked("get_output_embeddings")]
        if asked:
            return asked
        sizes = _declared_sizes(self.model)
        declared = []
        for weight in self.others:
            axes = [axis for axis, size in enumerate(weight.shape) if size in sizes]
            if (
                len(axes) == 1
                and weight.known_axis in (None, axes[0])
                and not self._in_stack(weight.path, 0)
                and self._after_stacks(weight)
            ):
                declared.append(Found(weight, axes[0]))
        named = [w for w in self.others if _HEADS.search(w.path) and w.known_axis is not None]
        found = declared or [Found(w, w.known_axis or 0) for w in named]
        taken = _keys([f.weight for f in found])
        unclear = [
            w
            for w in self.others
            if w.known_axis is None
            and min(w.shape) > 1
            and w.key not in taken
            and (w.says(_TOKENS) or "emb" in w.path.lower() or _HEADS.search(w.path))
            and not self._in_stack(w.path, 0)
        ]
        if unclear:
            _cannot_tell(unclear, "no nn.Embedding, but ")
        hidden = [
            path
            for path, module in self.model.named_modules()
            if _is_lookup(module)
            and not _called(Weight(path, module, (), {}, "", True), _NEVER_TOKENS | _SELDOM_TOKENS)
            and not any(w.owner is module and len(w.shape) == 2 for w in self.weights)
            and not list(module.children())
        ]
        if hidden:
            raise ValueError(
                f"the weights of the tables {hidden} are not matrices of the model's parameters, "
                "as where FSDP1 or ZeRO-3 have flattened them or they are quantised: they cannot "
                "be coupled; shard with torch.distributed.fsdp.fully_shard, or pass embeddings=[] "
                "to couple nothing"
            )
        return found

    # What the model says

    def _asked(self, *methods: str) -> list[Weight]:
        """The weights of what these methods return, of the model and of models inside it."""
        returned: list[Any] = []
        for module in self.model.modules():
            for name in methods:
                method = getattr(type(module), name, None)
                if method is None:
                    continue
                try:
                    returned.append(method(module))
                except Exception:
                    # CLIP raises NotImplementedError, others want arguments: then it says nothing.
                    continue
        weights = []
        for module in returned:
            if not isinstance(module, nn.Module):
                continue  # Perceiver returns its latent queries
            # Musicgen returns a list of tables, one for each codebook.
            for part in module if isinstance(module, nn.ModuleList) else [module]:
                held = self.of(part)
                # Several of one shape: a wrapper that keeps the original beside a copy to train.
                if len({w.shape for w in held}) == 1:
                    weights += [w for w in held if w.lookup or _may_be_head(w)]
        return weights

    def _says_that_it_has_no_head(self) -> bool:
        for module in self.model.modules():
            method = getattr(type(module), "get_output_embeddings", None)
            if method is not None:
                try:
                    return method(module) is None
                except Exception:
                    return False
        return False

    def _after_stacks(self, weight: Weight) -> bool:
        """Whether a layer comes last, as a head does; for a bare matrix order says nothing."""
        later = False
        for path, module in self.model.named_modules():
            if path in self._layers:
                later = False
            elif module is weight.owner:
                later = True
        return later or weight.known_axis is None

    def _in_stack(self, path: str, below: int) -> bool:
        parts = path.split(".")
        return any(".".join(parts[:n]) in self._layers for n in range(below + 1, len(parts) + 1))


def names_without_wrappers(name: str) -> str:
    """A parameter's or a module's name without what DDP, FSDP or a compiler put in front."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _weights(model: nn.Module) -> Iterator[Weight]:
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, parametrize.ParametrizationList):
            continue
        lookup = _is_lookup(module)
        for attribute, (parameters, computed) in _by_attribute(module).items():
            prefix = f"{path}." if path else ""
            named = {prefix + name: p for name, p in parameters.items()}
            shape = tuple(next(iter(named.values())).shape)
            if computed:
                shape = _declared_shape(module) or max(
                    (tuple(p.shape) for p in named.values()), key=lambda s: (len(s), s[-1:])
                )
            yield Weight(
                (path or attribute) if attribute == "weight" else prefix + attribute,
                module,
                shape,
                named,
                computed,
                lookup and (attribute == "weight" or not isinstance(module, nn.Embedding)),
            )


def _by_attribute(module: nn.Module) -> dict[str, tuple[dict[str, Tensor], str]]:
    """The matrices of a module by attribute: what each is made of, and by what."""
    own = {
        name: p
        for name, p in module._parameters.items()
        if p is not None and not nn.parameter.is_lazy(p)
    }
    made: dict[str, tuple[dict[str, Tensor], str]] = {}
    for name, parameter in own.items():
        base, _, ending = name.rpartition("_")
        if ending == "orig" and base:
            by = "pruning" if f"{base}_mask" in module._buffers else "spectral_norm"
            made[base] = ({name: parameter}, by)
        elif ending in ("g", "v") and {f"{base}_g", f"{base}_v"} <= own.keys():
            made[base] = ({f"{base}_{end}": own[f"{base}_{end}"] for end in "gv"}, "weight_norm")
        else:
            made[name] = ({name: parameter}, "")
    if parametrize.is_parametrized(module):
        parametrized: Any = module.parametrizations
        for name, steps in parametrized.items():
            by = " and ".join(type(step).__name__.strip("_") for step in steps)
            originals = {
                f"parametrizations.{name}.{key}": p for key, p in steps._parameters.items()
            }
            if originals:
                made[name] = (originals, f"the parametrization {by}")
    matrices = {}
    for name, (parameters, by) in made.items():
        if any(p.dim() == 2 for p in parameters.values()):
            matrices[name] = (parameters, by)
    return matrices


def _declared_shape(module: nn.Module) -> tuple[int, int] | None:
    # To ask for a computed weight would compute it, and spectral_norm then changes its buffers.
    for names in (("num_embeddings", "embedding_dim"), ("out_features", "in_features")):
        sizes = [getattr(module, name, None) for name in names]
        if all(isinstance(size, int) for size in sizes):
            return sizes[0], sizes[1]  # type: ignore[return-value]
    return None


def _is_lookup(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or hasattr(module, "num_embeddings"):
        return True
    # Many write their own, as courses do; a module that embeds patches has layers inside.
    return (
        "embed" in type(module).__name__.lower()
        and not hasattr(module, "in_features")
        and sum(p.dim() == 2 for p in module.parameters(recurse=False)) == 1
        and not list(module.children())
    )


def _may_be_head(weight: Weight) -> bool:
    return (
        len(weight.shape) == 2
        and not weight.says(_NEVER_TOKENS)
        and not isinstance(weight.owner, _NO_HEADS)
    )


def _called(weight: Weight, words: frozenset[str]) -> bool:
    return weight.says(words) or not words.isdisjoint(_words(type(weight.owner).__name__))


def _telling_words(path: str) -> set[str]:
    for part in reversed(path.split(".")):
        words = set(_words(part)) - _SAYS_NOTHING
        if words:
            return words
    return set()


def _layers_of_stacks(model: nn.Module) -> set[str]:
    """The names of modules that are one layer among others of their kind."""
    layers = set()
    for path, module in model.named_modules(remove_duplicate=False):
        if not isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            continue
        children = {
            name: child for name, child in module.named_children() if list(child.children())
        }
        kinds = [type(child) for child in children.values()]
        for name, child in children.items():
            if isinstance(module, nn.ModuleList) or kinds.count(type(child)) > 1:
                layers.add(f"{path}.{name}" if path else name)
    return layers


def _declared_sizes(model: nn.Module) -> set[int]:
    """The numbers of tokens that the model or its configuration states."""
    holders: list[Any] = []
    for module in model.modules():
        holders.append(module)
        holders += [getattr(module, name, None) for name in ("config", "model_args", "params")]
    sizes = {getattr(holder, name, None) for holder in holders for name in _SIZES}
    return {size for size in sizes if isinstance(size, int) and size > 1}


def _fits(weight: Weight, tables: list[Weight]) -> bool:
    return any(size in weight.shape for table in tables for size in table.shape[1:])


def _common(path: str, other: str) -> int:
    """How many parts two names share from the start."""
    shared = 0
    for a, b in zip(path.split("."), other.split("."), strict=False):
        if a != b:
            break
        shared += 1
    return shared


def _within(path: str, prefix: str) -> bool:
    return path == prefix or path.startswith(f"{prefix}.")


def _widest_without(path: str, tables: list[Weight]) -> str:
    """The outermost module around a weight that holds none of the tables."""
    parts = path.split(".")
    for n in range(1, len(parts)):
        prefix = ".".join(parts[:n])
        if not any(_within(table.path, prefix) for table in tables):
            return prefix
    return path


def _keys(weights: Iterable[Weight]) -> set[int]:
    return {weight.key for weight in weights}


def _distinct(found: Iterable[Found]) -> list[Found]:
    once: dict[int, Found] = {}
    for one in found:
        once.setdefault(one.weight.key, one)
    return list(once.values())


def _cannot_tell(weights: list[Weight], before: str = "") -> list[Weight]:
    names = sorted({weight.path: None for weight in weights})
    raise ValueError(
        f"cannot tell which parameters are the token embeddings ({before}{len(names)} candidates: "
        f"{names}): name them, as in {NAME_THEM}; embeddings=[] couples nothing"
    )
