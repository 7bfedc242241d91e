"""The trend prior: what everybody takes at the time of asking."""

import torch
from torch import Tensor, nn

from .configuration_implicitrec import ImplicitRecConfig
from .kernels_implicitrec import TimeKernel

HIDDEN = 0.5  # share of the training positions that do not say when they are asked


class TrendPrior(nn.Module):
    """Excitation by the crowd: each of everybody's last events before the question raises its item.

    The count of item v when asked at t is `sum over the last trend_context events before t, those of item
    v, of exp(k[age bucket])`, for a learned kernel k of the time since. Events at t itself do not count:
    so a label, at whose time the model is asked in training, never names itself. Where nobody says when
    the question is asked nothing is counted; half of the training positions are so, for the other parts
    of the model to do without it.
    """

    tokens: Tensor
    times: Tensor

    def __init__(self, config: ImplicitRecConfig):
        super().__init__()
        self.context = min(config.trend_context, config.num_trend_events)
        shape = (config.num_trend_events,)
        self.register_buffer("tokens", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("times", torch.zeros(shape, dtype=torch.int64))
        self.time_kernel = TimeKernel(config)
        self.power = nn.Parameter(torch.zeros(1))
        self.level = nn.Parameter(torch.zeros(1))

    def forward(self, history: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Source tokens and values, both `[positions, context]`; of no events where nobody says when."""
        if "asked_at" not in history:
            none = history["input_ids"][:, :0]
            return none, none.to(self.level.dtype)
        asked = history["asked_at"][:, None]
        if torch.compiler.is_compiling():
            before = (self.times < asked).sum(1, keepdim=True)
        else:
            before = torch.searchsorted(self.times, asked.contiguous())
        place = before - 1 - torch.arange(self.context, device=asked.device)
        there, place = place >= 0, place.clamp_min(0)
        tokens = self.tokens[place].long()
        values = self.time_kernel.of_age(asked - self.times[place]).clamp_max(10).exp()
        if self.training:
            there &= torch.rand(len(asked), 1, device=asked.device) >= HIDDEN
        return tokens, values * (there & (tokens > 0))

    @torch.no_grad()
    def observe(self, tokens: Tensor, times: Tensor) -> None:
        """Let new events in; of those that are held and the new ones the latest stay.

        Args:
            tokens: `[events]` items of anybody's events.
            times: `[events]` seconds.
        """
        tokens = torch.cat([self.tokens, tokens.to(self.tokens)])
        times = torch.cat([self.times, times.to(self.times)])
        latest = torch.argsort(times, stable=True)[len(times) - len(self.times) :]
        self.tokens.copy_(tokens[latest])
        self.times.copy_(times[latest])
