"""A cache that keeps what its policy says: rows of one length, read chunk by chunk.

Within a chunk attention is exact; after it, each layer chooses, codes and packs what it keeps. What a query saw is
therefore what the cache held before the chunk, and the chunk up to the query's own token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy

import torch
from torch import Tensor

from bonsaigpt.config import (
    EvictingSelection,
    KeysAndValues,
    KVConfig,
    LayerPolicy,
    ModelConfig,
    QuantizedFormat,
    RopePosition,
    WindowSelection,
)
from bonsaigpt.errors import ConfigError
from bonsaigpt.kv import AttendingCache
from bonsaigpt.torch_engine.attention import Attention, Where, attend, shares
from bonsaigpt.torch_engine.attention import Seen as Shown
from bonsaigpt.torch_engine.elementwise import rotate
from bonsaigpt.torch_engine.kv.scores import Seen, kept, scorer
from bonsaigpt.torch_engine.kv.store import Store
from bonsaigpt.torch_engine.rope import rotation, temperature

__all__ = ["PolicyCache", "Watch", "bits_of"]

Watch = Callable[[int, Tensor, Tensor, Tensor], None]


class PolicyCache(AttendingCache):
    """Of all layers.

    Args:
        memory: see ``Store``: to measure losses faster.
        native: see ``Store``: to decode faster on a CPU.
        watch: is told of every layer's attention: the layer, the true positions of what is held (1 or B, 1 or G, S) and
            of the new tokens (T,), and what each query takes of each of both, (B, H, T, S + T).

    Raises:
        ConfigError: a model of this configuration cannot have this policy.
    """

    def __init__(
        self,
        config: ModelConfig,
        kv: KVConfig,
        *,
        memory: bool = False,
        native: bool = False,
        watch: Watch | None = None,
    ) -> None:
        try:
            kv.check(config)
        except ValueError as error:
            raise ConfigError(f"the cache policy does not fit the model: {error}") from None
        self.kv = kv
        turning = _Turning(config) if isinstance(config.position, RopePosition) else None
        self._share = [config.kv_source(layer) for layer in range(config.n_layer)]
        self._layers = {
            layer: _Layer(config, kv.held(config, layer), turning, watch, memory=memory, native=native)
            for layer in config.kv_layers
        }

    @property
    def length(self) -> int:
        return self._layers[self._share[-1]].length  # the last that holds: inside a pass, the length before it

    def attend(self, attention: Attention, x_BTD: Tensor, where: Where, shared: Shown | None) -> tuple[Tensor, Shown]:
        layer = self._layers[self._share[attention.layer]]
        if attention.has_own:
            return layer.attend(attention, x_BTD)
        assert shared is not None
        return layer.attend_shared(attention, x_BTD, shared), shared

    def fork(self) -> PolicyCache:
        """The same past once more; what follows goes to one of both. It shares all tensors, as none is ever changed."""
        twin = copy(self)
        twin._layers = {number: layer.fork() for number, layer in self._layers.items()}
        return twin

    @property
    def can_truncate(self) -> bool:
        """Whether ``truncate`` is possible: everything is held, token by token, as it was first written."""
        return all(layer.can_truncate for layer in self._layers.values())

    def truncate(self, length: int) -> None:
        """Forget all but the first tokens."""
        for layer in self._layers.values():
            layer.truncate(length)

    def positions(self, layer: int) -> Tensor:
        """The true positions of the tokens that a layer holds, or whose keys and values it reads, (B, G, S); B and G
        are 1 where all rows and heads hold the same."""
        return self._layers[self._share[layer]].positions()

    def tensors(self) -> Iterator[Tensor]:
        """All that is held."""
        for layer in self._layers.values():
            yield from layer.tensors()

    def bits(self) -> int:
        return bits_of(self.tensors())


def bits_of(tensors: Iterable[Tensor]) -> int:
    """Bits of the memory behind tensors, each piece counted once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors if t.numel()}
    return 8 * sum(storage.nbytes() for storage in storages.values())


class _Turning:
    """RoPE at any position: the model's own table, grown as a text grows."""

    def __init__(self, config: ModelConfig) -> None:
        assert isinstance(config.position, RopePosition)
        self._config, self._position = config, config.position
        self._table: tuple[Tensor, Tensor] | None = None

    def turn(self, x: Tensor, positions: Tensor) -> Tensor:
        """Turn (..., K) to these positions, which broadcast over what stands before K; negative ones turn back."""
        cos, sin = self._upto(int(positions.abs().max()) + 1, x.device)
        at = positions.abs()
        sign = positions.sign()[..., None]
        sign = torch.where(sign == 0, 1, sign)  # sin 0 is 0 either way
        return rotate(x, cos[at], sin[at] * sign, neighbours=self._position.pairs == "neighbours")

    def turn_from(self, x_BTHK: Tensor, start: int) -> Tensor:
        """Turn to positions from ``start`` on: a piece of the table instead of a look at each."""
        end = start + x_BTHK.shape[1]
        cos, sin = (table[start:end, None] for table in self._upto(end, x_BTHK.device))
        return rotate(x_BTHK, cos, sin, neighbours=self._position.pairs == "neighbours")

    def move(self, x: Tensor, by: Tensor) -> Tensor:
        """Turn on by so many positions what ``turn`` has turned already, whose temperature it has."""
        return self.turn(x, by) / temperature(self._position)

    def _upto(self, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
        if self._table is None or len(self._table[0]) < count:
            size = max(count, self._config.block_size, 0 if self._table is None else 2 * len(self._table[0]))
            cos, sin = rotation(self._position, self._config.head_width, torch.arange(size))
            self._table = cos.to(device), sin.to(device)
        return self._table


class _Layer:
    """What one layer holds, and how it is attended to."""

    def __init__(
        self, config: ModelConfig, policy: LayerPolicy, turning: _Turning | None, watch: Watch | None, **coding: bool
    ) -> None:
        self._policy, self._select, self._turning, self._watch = policy, policy.select, turning, watch
        self._groups = config.n_kv_head
        widths = {"k": config.head_width, "v": config.head_width, "x": config.n_embd}
        forms = policy.formats
        if (
            "x" not in forms and forms["k"] == forms["v"]
        ):  # side by side, as twice as many heads: half as many operators
            forms, widths = {"kv": forms["k"]}, {"kv": config.head_width}
        self._stores = {name: Store(form, width=widths[name], **coding) for name, form in forms.items()}
        self._scorer = scorer(policy.select)
        self._shared = self._scorer is None or self._scorer.shared or "x" in self._stores
        self._old_BGS = torch.empty(0)  # where a layer is watched: the positions that its reader saw
        self._positions_BGS: Tensor | None = None  # int32; where they do not follow from the length
        self._scores_BGS: Tensor | None = None
        self._since = 0
        self.length = 0

    def fork(self) -> _Layer:
        twin = copy(self)
        twin._stores = {name: copy(store) for name, store in self._stores.items()}
        return twin

    def tensors(self) -> Iterator[Tensor]:
        for store in self._stores.values():
            yield from store.tensors()
        yield from (t for t in (self._positions_BGS, self._scores_BGS) if t is not None)

    @property
    def _held(self) -> int:
        return len(next(iter(self._stores.values())))

    def positions(self) -> Tensor:
        """True positions (B, G, S) of what is held."""
        return self._places(0)

    def _places(self, T: int) -> Tensor:
        """True positions (B, G, S + T) of what is held and of the next tokens."""
        if self._positions_BGS is not None:
            new = torch.arange(self.length, self.length + T, device=self._positions_BGS.device)
            held_BGS = self._positions_BGS.long()
            return torch.cat((held_BGS, new.expand(*held_BGS.shape[:2], -1)), dim=-1)
        sinks = self._select.sinks if isinstance(self._select, EvictingSelection) else 0
        first = min(sinks, self._held)
        places = torch.arange(self.length - self._held + first, self.length + T)
        return (torch.cat((torch.arange(first), places)) if first else places)[None, None]

    # ------------------------------------------------------------------ reading

    def attend(self, attention: Attention, x_BTD: Tensor) -> tuple[Tensor, Shown]:
        """Of a layer with keys and values of its own: see ``AttendingCache``."""
        H, G, T, S = attention.n_head, attention.n_kv_head, x_BTD.shape[1], self._held
        qk_BTHK, v_BTGK = attention.heads(x_BTD)
        places_BGS = self._places(T).to(x_BTD.device)
        slots = self._policy.positions == "slot"
        seen_BTHK = self._turned_from(qk_BTHK, S if slots else self.length)  # where they stand for this reading
        q_BHTK, k_BGTK = (t.transpose(1, 2) for t in seen_BTHK.split([H, G], dim=2))
        v_BGTK = v_BTGK.transpose(1, 2)
        new = self._as_held(x_BTD, qk_BTHK[:, :, H:], k_BGTK if not slots else None, v_BGTK)
        k_BGSK, v_BGSK = self._seen(attention, new, k_BGTK, v_BGTK, places_BGS)
        # Of heads that keep different tokens the places of the first: all that is held stands before what is new.
        shown = Shown(k_BGSK, v_BGSK, places_BGS[:, 0])
        shares_BHTS = None
        if self._scorer is not None and self._scorer.attention:
            mask = self._mask(attention, shown, T)
            shares_BHTS = shares(q_BHTK, k_BGSK, mask, sinks_H=attention.sinks, scale=attention.scale)
            group = H // G
            wide_v = v_BGSK.repeat_interleave(group, dim=1) if group > 1 else v_BGSK
            y_BHTK = shares_BHTS @ wide_v.to(shares_BHTS.dtype)
        else:
            y_BHTK = self._look(attention, q_BHTK, shown)
        if self._watch is not None:
            self._old_BGS = places_BGS[:, :, :S]
            self._tell(self._watch, attention, q_BHTK, shown)

        leave = self._leaving(T)
        for name, tokens in new.items():
            self._stores[name].append(tokens, **leave)
        self.length += T
        self._forget(attention.layer, T, k_BGSK, places_BGS, shares_BHTS)
        return y_BHTK, shown

    def attend_shared(self, attention: Attention, x_BTD: Tensor, shown: Shown) -> Tensor:
        """Of a layer that reads this one's keys and values, which has taken the new tokens in already."""
        assert shown.slots_BS is not None
        q_BTHK, _ = attention.heads(x_BTD)
        T, S = x_BTD.shape[1], shown.slots_BS.shape[1]
        here = torch.arange(S - T, S, device=x_BTD.device)
        if self._policy.positions != "slot":
            here = shown.slots_BS[0, -T:]
        q_BHTK = self._turned(q_BTHK, here[None, :, None]).transpose(1, 2)
        if self._watch is not None:
            self._tell(self._watch, attention, q_BHTK, shown)
        return self._look(attention, q_BHTK, shown)

    def _tell(self, watch: Watch, attention: Attention, q_BHTK: Tensor, shown: Shown) -> None:
        """What each query takes of what it sees."""
        assert shown.slots_BS is not None
        T = q_BHTK.shape[2]
        mask, sinks = self._mask(attention, shown, T), attention.sinks
        seen = shares(q_BHTK, shown.k_BGSK, mask, sinks_H=sinks, scale=attention.scale)
        watch(attention.layer, self._old_BGS, shown.slots_BS[0, -T:], seen)

    def _look(self, attention: Attention, q_BHTK: Tensor, shown: Shown) -> Tensor:
        return attend(
            q_BHTK,
            shown.k_BGSK,
            shown.v_BGSK,
            self._mask(attention, shown, q_BHTK.shape[2]).expand(q_BHTK.shape[0], 1, -1, -1),
            dropout=0.0,
            plain=attention.plain,
            sinks_H=attention.sinks,
            scale=attention.scale,
        )

    def _turned_from(self, x_BTHK: Tensor, start: int) -> Tensor:
        return x_BTHK if self._turning is None else self._turning.turn_from(x_BTHK, start)

    def _turned(self, x: Tensor, positions: Tensor) -> Tensor:
        return x if self._turning is None else self._turning.turn(x, positions)

    def _as_held(self, x_BTD: Tensor, k_BTGK: Tensor, turned_BGTK: Tensor | None, v_BGTK: Tensor) -> dict[str, Tensor]:
        """The new tokens for each store, (B, G, T, K); ``turned``: their keys at their true positions, if known."""
        hold = self._policy.hold
        if not isinstance(hold, KeysAndValues):
            return {"x": x_BTD[:, None]}
        if hold.keys == "unrotated":
            turned_BGTK = k_BTGK.transpose(1, 2)
        elif turned_BGTK is None:
            turned_BGTK = self._turned_from(k_BTGK, self.length).transpose(1, 2)
        if "kv" in self._stores:
            return {"kv": torch.cat((turned_BGTK, v_BGTK), dim=1)}
        return {"k": turned_BGTK, "v": v_BGTK}

    def _seen(
        self, attention: Attention, new: dict[str, Tensor], k_BGTK: Tensor, v_BGTK: Tensor, places_BGS: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Keys as this reading wants them turned, and values, of all that is held and of the new tokens."""
        held, total = self._held, places_BGS.shape[2]
        if not held:
            return k_BGTK, v_BGTK
        slots = self._policy.positions == "slot"
        here_BGS = torch.arange(total, device=places_BGS.device)[None, None] if slots else places_BGS
        found = [store.read(new[name]) for name, store in self._stores.items()]
        hold = self._policy.hold
        if not isinstance(hold, KeysAndValues):
            qk_BSHK, v_BSGK = attention.heads(found[0][:, 0, :held])
            k_BGSK = qk_BSHK[:, :, attention.n_head :].transpose(1, 2).contiguous()
            k_BGSK = torch.cat((self._turned(k_BGSK, here_BGS[:, :, :held]), k_BGTK), dim=2)
            return k_BGSK, torch.cat((v_BSGK.transpose(1, 2), v_BGTK), dim=2)
        k_BGSK, v_BGSK = found[0].chunk(2, dim=1) if "kv" in self._stores else found
        if hold.keys == "unrotated":
            return self._turned(k_BGSK, here_BGS), v_BGSK
        if slots:
            assert self._turning is not None  # other positions have no slots
            k_BGSK = self._turning.move(k_BGSK, here_BGS - places_BGS)
        return k_BGSK, v_BGSK

    def _mask(self, attention: Attention, shown: Shown, T: int) -> Tensor:
        """True where a query may look, (1, 1, T, S + T): everything held, and its own and earlier tokens of the chunk;
        under a window, of the policy or of the layer, what that says."""
        assert shown.slots_BS is not None
        keys, own, device = shown.slots_BS[0], attention.window, shown.slots_BS.device
        S, select = len(keys) - T, self._select if isinstance(self._select, WindowSelection) else None
        if T == 1 and select is not None and select.most > S and (own is None or (own > S and not select.sinks)):
            return torch.ones(1, 1, 1, S + 1, dtype=torch.bool, device=device)  # all that is held is in sight
        mask = torch.ones(T, S + T, dtype=torch.bool, device=device).tril(S)
        ago = keys[S:, None] - keys
        if select is not None:
            mask &= (ago < select.window) | (keys < select.sinks)
        if own is not None:
            mask &= ago < own
        return mask[None, None]

    # ------------------------------------------------------------------ keeping

    def _leaving(self, T: int) -> dict[str, int]:
        """Which tokens a window forgets when so many come."""
        if not isinstance(self._select, WindowSelection):
            return {}
        over = max(0, self._held + T - (self._select.most - 1))
        return {"start": self._select.sinks, "drop": over // self._policy.granularity * self._policy.granularity}

    def _forget(self, layer: int, T: int, k_BGSK: Tensor, places_BGS: Tensor, shares_BHTS: Tensor | None) -> None:
        if not isinstance(self._select, EvictingSelection) or self._scorer is None:
            return  # a window has forgotten already
        over = self._held - (self._select.most - 1)
        B = k_BGSK.shape[0]
        positions_BGS = places_BGS.expand(B, 1 if self._shared else self._groups, -1)
        shares_BGTS = None
        if shares_BHTS is not None:
            shares_BGTS = shares_BHTS.float().unflatten(1, (self._groups, -1)).sum(2)
        seen = Seen(layer, k_BGSK, positions_BGS, shares_BGTS, self.length)
        held_BGS = self._scorer.gather(self._scores_BGS, seen)
        self._since += T
        if over > 0 and self._since >= self._scorer.every:
            scores_BGS = self._scorer.score(held_BGS, seen).expand(B, -1, -1)
            if self._shared:
                scores_BGS = scores_BGS.mean(1, keepdim=True)
            index = kept(scores_BGS, self._select)
            of_both = index if self._shared else torch.cat((index, index), dim=1)
            for name, store in self._stores.items():
                store.keep(of_both if name == "kv" else index)
            positions_BGS = positions_BGS.gather(2, index)
            held_BGS = None if held_BGS is None else held_BGS.gather(2, index.expand(B, held_BGS.shape[1], -1))
        if self._since >= self._scorer.every:
            self._since = 0
            if self._scorer.every > 1 and held_BGS is not None:
                held_BGS = torch.zeros_like(held_BGS)  # the next choice looks at the next queries
        self._positions_BGS, self._scores_BGS = positions_BGS.to(torch.int32), held_BGS

    @property
    def can_truncate(self) -> bool:
        formats = self._policy.formats.values()
        coded = (f for f in formats if isinstance(f, QuantizedFormat))
        whole = not isinstance(self._select, EvictingSelection)
        return whole and all(f.axis == "token" and not f.residual for f in coded)

    def truncate(self, length: int) -> None:
        for store in self._stores.values():
            store.truncate(length)
        self.length = length
