"""The average of the weights, against timm's own."""

import copy

import torch
from timm.utils import ModelEmaV3
from torch import nn

from alast_tune.averaging import WeightAverage


def move(model: nn.Module) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_it_is_timms_of_what_trains_bit_for_bit_and_can_be_resumed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].bias.requires_grad_(False)
    trains = [p for p in model.parameters() if p.requires_grad]
    theirs = ModelEmaV3(model, decay=0.9, use_warmup=True)
    ours = WeightAverage(trains, 0.9)
    for step in range(1, 60):  # timm's decay comes to 0.9 after 31 updates
        with torch.no_grad():
            for parameter in trains:
                parameter.add_(torch.randn_like(parameter))
        theirs.update(model, step=step)
        ours.update()
        if step == 10:
            state = copy.deepcopy(ours.state_dict())
            ours = WeightAverage(trains, 0.9)
            ours.load_state_dict(state)
    weights = copy.deepcopy(model.state_dict())
    with ours.in_place():
        for name, average in theirs.module.state_dict().items():
            assert torch.equal(model.state_dict()[name], average), name
        assert not torch.equal(model[0].weight, weights["0.weight"])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def test_without_a_decay_there_is_none() -> None:
    model = nn.Linear(2, 2)
    none = WeightAverage(list(model.parameters()), None)
    before = model.weight.detach().clone()
    move(model)
    none.update()
    with none.in_place():
        assert not torch.equal(model.weight, before)
    assert none.tensors == []
