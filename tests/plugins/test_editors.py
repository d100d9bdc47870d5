"""Gradient and weight editors against torch's own functions and loops written by hand."""

import copy
import logging

import pytest
import torch
import weightsmith_plugins as w
from torch import nn
from weightsmith import (
    ConfigurationError,
    Progress,
    SelectionError,
    Trainer,
    UnsupportedWeightError,
    WeightEvents,
    linear,
    piecewise,
)

BATCHES = [(torch.randn(8, 4, generator=torch.Generator().manual_seed(s)), torch.arange(8) % 3) for s in range(6)]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def trainer_of(model, *plugins, optimizer=None, **options):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Trainer(model, optimizer, nn.CrossEntropyLoss(), plugins=plugins, seed=0, **options)


class TestGradientEditors:
    def test_clip_value_is_torchs(self):
        gradient = torch.randn(4, 5)
        parameter = nn.Parameter(torch.zeros(4, 5))
        parameter.grad = gradient.clone()
        nn.utils.clip_grad_value_([parameter], 0.3)
        assert torch.equal(w.ClipValue(0.3)(gradient, parameter), parameter.grad)

    def test_clip_unit_norm_is_torchs_row_by_row(self):
        gradient = torch.randn(4, 5)
        rows = [nn.Parameter(torch.zeros(5)) for _ in gradient]
        for row, values in zip(rows, gradient, strict=True):
            row.grad = values.clone()
            nn.utils.clip_grad_norm_([row], 2.0)
        wanted = torch.stack([row.grad for row in rows])
        assert torch.allclose(w.ClipUnitNorm(2.0)(gradient, torch.zeros(4, 5)), wanted, atol=1e-5)

    @pytest.mark.parametrize("shape", [(6, 6), (4, 9), (9, 4), (5, 2, 3, 3)])
    def test_orthogonalize_keeps_singular_vectors_and_evens_the_values(self, shape):
        torch.manual_seed(0)
        gradient = torch.randn(shape)
        edited = w.Orthogonalize()(gradient, torch.zeros(shape)).flatten(1)
        left, _, right = torch.linalg.svd(gradient.flatten(1), full_matrices=False)
        turned = left.T @ edited @ right.T  # diagonal if the singular vectors are the same
        scale = max(1.0, edited.shape[0] / edited.shape[1]) ** 0.5
        assert torch.allclose(turned, turned.diag().diag(), atol=1e-4)
        assert ((turned.diag() / scale > 0.5) & (turned.diag() / scale < 1.3)).all()

    def test_noise_has_its_standard_deviation_and_is_new_every_update(self):
        model = nn.Linear(100, 100, bias=False)
        seen = []
        trainer = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.0),
            step=lambda t, _: t.update((model.weight * 0).sum()),
            plugins=[w.Noise(0.2)],
        )
        trainer.add_event_handler(WeightEvents.STEP_COMPLETED, lambda: seen.append(model.weight.grad.clone()))
        trainer.run(range(2))
        assert seen[0].std().item() == pytest.approx(0.2, rel=0.03)
        assert abs(seen[0].mean().item()) < 0.01
        assert abs(torch.corrcoef(torch.stack([s.flatten() for s in seen]))[0, 1].item()) < 0.05

    def test_normalize_and_sign_and_scale(self):
        gradient = torch.randn(3, 4)
        assert torch.allclose(w.Normalize(2.0)(gradient, gradient), 2 * gradient / gradient.norm())
        assert torch.equal(w.Sign()(gradient, gradient), gradient / gradient.abs())
        assert torch.equal(w.ScaleGradient(-0.5)(gradient, gradient), -0.5 * gradient)


class TestFreeze:
    @pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
    def test_not_even_momentum_and_decay_move_it(self, kind):
        model = network()
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(model.parameters(), lr=0.1, weight_decay=0.1, **options)
        trainer = trainer_of(model, w.Freeze(where="0", after=3), w.L2(0.1), optimizer=optimizer)
        trainer.run(BATCHES[:3])
        before = [p.detach().clone() for p in model.parameters()]
        trainer.run(BATCHES[:3], max_epochs=3)
        after = list(model.parameters())
        assert torch.equal(after[0], before[0])
        assert torch.equal(after[1], before[1])
        assert not torch.equal(after[2], before[2])

    def test_layers_join_one_by_one_with_clean_optimizer_state(self):
        model = network()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        trainer_of(model, optimizer=optimizer).run(BATCHES)  # so that there is a state to clean
        count = piecewise({0: 0, 3: 1, 6: 2})
        trainer = trainer_of(model, w.Unfreeze(["2.weight", "0"], count), optimizer=optimizer)
        moved, steps = [], []

        def look():
            moved.append([not torch.equal(a, b) for a, b in zip(model.parameters(), kept, strict=True)])
            steps.append(int(optimizer.state[model[0].weight]["step"]))
            kept[:] = [p.detach().clone() for p in model.parameters()]

        kept = [p.detach().clone() for p in model.parameters()]
        trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, look)
        trainer.run(BATCHES, max_epochs=2)
        head = [False, False, False, True]
        assert moved[:3] == [head] * 3
        assert moved[3:6] == [[False, False, True, True]] * 3
        assert moved[6:] == [[True] * 4] * 6
        assert steps[5:8] == [6, 1, 2]  # 6 from before; then it began anew

    def test_what_was_never_frozen_keeps_its_momentum_and_a_layer_can_freeze_again(self):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        trainer = trainer_of(model, optimizer=optimizer)
        trainer.run(BATCHES[:3])
        trainer.attach(w.Unfreeze(["2"], piecewise({0: 1, 5: 0})))
        kept = []
        trainer.add_event_handler(
            WeightEvents.GRADIENTS_READY, lambda: kept.append("momentum_buffer" in optimizer.state[model[2].weight])
        )
        trainer.run(BATCHES[:3], max_epochs=2)
        assert kept == [True] * 3
        assert model[2].weight.grad is None  # frozen again at update 6

    def test_a_layer_that_matches_nothing_is_named(self):
        with pytest.raises(SelectionError, match="encoder"):
            trainer_of(network(), w.Unfreeze(["encoder"], linear(0, 1, over=2)))


class TestSkipNonFinite:
    def poisoned(self, at, *plugins, **options):
        model = network()
        trainer = trainer_of(model, *plugins, **options)

        def poison():
            if trainer.state.iteration in at:
                model[2].weight.grad[0, 0] = float("nan")

        trainer.add_event_handler(WeightEvents.MICROBATCH_COMPLETED, poison)
        return model, trainer

    def test_the_run_goes_on_as_if_the_batch_had_not_been(self, caplog):
        plugins = w.SkipNonFinite(), w.L2(0.01, mode="decoupled"), w.ClipNorm(1.0)
        model, trainer = self.poisoned([3], *plugins)
        with caplog.at_level(logging.WARNING):
            trainer.run(BATCHES)
        without = network()
        trainer_of(without, *plugins).run([*BATCHES[:2], *BATCHES[3:]])
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), without.parameters(), strict=True))
        assert trainer.state.updates == {"optimizer": 5}
        assert "the gradient of weight '2.weight' is not finite in update 3: the update is skipped" in caplog.text

    def test_it_does_not_skip_for_ever(self):
        _, trainer = self.poisoned(range(3, 9), w.SkipNonFinite(patience=2))
        with pytest.raises(FloatingPointError, match=r"'2\.weight' is not finite in update 3, and 2 updates in a row"):
            trainer.run(BATCHES)

    def test_skips_that_do_not_follow_each_other_do_not_count_together(self):
        _, trainer = self.poisoned([1, 3, 5], w.SkipNonFinite(patience=1))
        trainer.run(BATCHES)
        assert trainer.state.updates == {"optimizer": 3}

    def test_patience_counts_updates_whichever_weight_it_was(self):
        model = network()
        trainer = trainer_of(model, w.SkipNonFinite(patience=2))

        def poison():
            model[2 * (trainer.state.iteration % 2)].weight.grad[0, 0] = float("inf")

        trainer.add_event_handler(WeightEvents.MICROBATCH_COMPLETED, poison)
        with pytest.raises(FloatingPointError):
            trainer.run(BATCHES)
        assert trainer.state.iteration == 3

    @pytest.mark.parametrize("dtypes", [("float32",), ("float64",), ("bfloat16",), ("float16", "float32")], ids=str)
    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), None])
    def test_every_value_is_looked_at_and_none_is_changed(self, dtypes, value, caplog):
        layers = [nn.Linear(3, 4).to(getattr(torch, dtype)) for dtype in (dtypes * 2)[:2]]
        model = nn.Sequential(*layers)
        trainer = trainer_of(model, w.SkipNonFinite())
        least, most = (getattr(torch.finfo(layers[1].bias.dtype), end) for end in ("smallest_normal", "max"))
        gradients = [torch.randn(3, 4).T, torch.tensor([-0.0, 1e-7, 1.0, -1.0]), torch.randn(4, 6)[:, ::2]]
        gradients.append(torch.tensor([-0.0, least / 2, most, -most], dtype=torch.float64))
        gradients = [gradient.to(raw.dtype) for gradient, raw in zip(gradients, model.parameters(), strict=True)]
        if value is not None:
            gradients[2][3, 1] = value

        def give(trainer, batch):
            for raw, gradient in zip(model.parameters(), gradients, strict=True):
                raw.grad = gradient.clone(memory_format=torch.preserve_format)
            trainer.state.optimizer = "optimizer"
            trainer._fire_event(WeightEvents.GRADIENTS_COMPUTED)
            found.extend(raw.grad.clone() for raw in model.parameters())

        found, trainer._process_function = [], give
        trainer.run([0])
        assert ("weight '1.weight' is not finite" in caplog.text) is (value is not None)
        for raw, gradient in zip(found, gradients, strict=True):
            torch.testing.assert_close(raw, gradient, rtol=0, atol=0, equal_nan=True)
            assert torch.equal(raw.signbit(), gradient.signbit())

    def test_with_sharpness_aware_steps_one_skip_is_one(self):
        _, trainer = self.poisoned([2], w.SkipNonFinite(patience=1), w.SharpnessAware())
        trainer.run(BATCHES)
        assert trainer.state.updates == {"optimizer": 5}

    def test_where_nothing_can_be_skipped_it_is_refused(self):
        model = network()
        with pytest.raises(ConfigurationError, match="of which none can be left"):
            trainer_of(model, w.SkipNonFinite(), optimizer=torch.optim.LBFGS(model.parameters()))
        with pytest.raises(ConfigurationError, match="acts on GRADIENTS_COMPUTED and nowhere else"):
            trainer_of(model, w.SkipNonFinite(at=WeightEvents.STEP_COMPLETED))
        trainer = trainer_of(model)
        trainer.add_event_handler(WeightEvents.GRADIENTS_READY, trainer.skip_update)
        with pytest.raises(ConfigurationError, match="call it from a handler of GRADIENTS_COMPUTED"):
            trainer.run(BATCHES)

    def test_there_must_be_an_update_to_skip(self):
        with pytest.raises(ConfigurationError, match="no update to skip here"):
            trainer_of(network()).skip_update()


class TestSharpnessAware:
    @pytest.mark.parametrize("adaptive", [False, True])
    def test_it_is_the_loop_written_by_hand(self, adaptive):
        ours, theirs = network(), network()
        strength = 0.05
        trainer = trainer_of(ours, w.L2(strength), w.SharpnessAware(0.3, adaptive=adaptive), w.ClipNorm(0.5))
        trainer.run(BATCHES, max_epochs=3)
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
        parameters = list(theirs.parameters())

        def gradients(inputs, targets):
            optimizer.zero_grad()
            penalty = sum(p.square().sum() for p in parameters if p.ndim > 1)
            (nn.functional.cross_entropy(theirs(inputs), targets) + strength * penalty).backward()
            return [p.grad.clone() for p in parameters]

        for batch in BATCHES * 3:
            slopes = gradients(*batch)
            scaled = [p.detach().abs() * g if adaptive else g for p, g in zip(parameters, slopes, strict=True)]
            norm = torch.cat([s.flatten() for s in scaled]).norm()
            kept = [p.detach().clone() for p in parameters]
            with torch.no_grad():
                for p, s in zip(parameters, scaled, strict=True):
                    p.add_((p.abs() * s if adaptive else s) * 0.3 / norm)
            gradients(*batch)
            with torch.no_grad():
                for p, k in zip(parameters, kept, strict=True):
                    p.copy_(k)
            nn.utils.clip_grad_norm_(parameters, 0.5)
            optimizer.step()
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours.parameters(), parameters, strict=True))

    def test_statistics_follow_the_first_evaluation_and_decoupled_decay_acts_once(self):
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
        plain = copy.deepcopy(model)
        for twin, plugins in ((model, [w.SharpnessAware(0.5)]), (plain, [])):
            optimizer = torch.optim.SGD(twin.parameters(), lr=0.0)
            trainer_of(twin, w.L2(0.1, mode="decoupled"), *plugins, optimizer=optimizer).run(BATCHES)
        assert torch.equal(model[1].running_mean, plain[1].running_mean)
        assert model[1].num_batches_tracked == 6
        assert torch.equal(model[0].weight, plain[0].weight)

    def test_buffers_that_a_module_replaces_are_restored(self):
        class Counting(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = nn.Linear(4, 3)
                self.register_buffer("calls", torch.tensor(0))

            def forward(self, x):
                self.calls = self.calls + 1
                return self.inner(x)

        model = Counting()
        trainer_of(model, w.SharpnessAware()).run(BATCHES)
        assert model.calls == 6

    @pytest.mark.parametrize("options", [{"accumulate": 2}, {"precision": "float16"}])
    def test_where_it_is_not_defined_it_is_refused(self, options):
        with pytest.raises(ConfigurationError, match="second evaluation in one update is not defined"):
            trainer_of(network(), w.SharpnessAware(), **options)

    def test_a_loss_in_place_of_a_function_is_told(self):
        model = network()
        trainer = Trainer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            step=lambda t, batch: t.update(model(batch[0]).sum()),
            plugins=[w.SharpnessAware()],
        )
        before = model[0].weight.detach().clone()
        with pytest.raises(ConfigurationError, match="pass update\\(\\) a function that computes it"):
            trainer.run(BATCHES)
        assert torch.equal(model[0].weight, before)


class TestWeightEditors:
    def test_lookahead_is_the_loop_written_by_hand(self):
        ours, theirs = network(), network()
        trainer_of(ours, w.Lookahead(0.3, every=4)).run(BATCHES, max_epochs=2)
        optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.9)
        slow = [p.detach().clone() for p in theirs.parameters()]
        for number, (inputs, targets) in enumerate(BATCHES * 2, start=1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(theirs(inputs), targets).backward()
            optimizer.step()
            if number % 4 == 0:
                with torch.no_grad():
                    for s, p in zip(slow, theirs.parameters(), strict=True):
                        s += 0.3 * (p - s)
                        p.copy_(s)
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))

    @pytest.mark.parametrize("to", [0, 2])
    def test_rewind_goes_back_with_clean_optimizer_state(self, to):
        model = network()
        history = []
        trainer = trainer_of(model, w.Rewind(to, after=4, before=6))
        trainer.add_event_handler(
            WeightEvents.UPDATE_COMPLETED, lambda: history.append(model[0].weight.detach().clone())
        )
        start = model[0].weight.detach().clone()
        trainer.run(BATCHES)
        assert torch.equal(history[4], start if to == 0 else history[1])
        # After going back, the first step is one without momentum.
        assert torch.allclose(history[5], history[4] - 0.1 * model[0].weight.grad, atol=1e-6)

    def test_units_that_never_get_a_gradient_are_drawn_anew(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
        with torch.no_grad():
            model[0].bias[2] = -100.0  # silent for every input
        before = model[0].weight[2].detach().clone()
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        trainer = trainer_of(model, w.ResetDormant(0.01, interval=6, where="0.weight"), optimizer=optimizer)
        kept = []
        trainer.add_event_handler(WeightEvents.GRADIENTS_READY, lambda: kept.append(model[0].weight.detach().clone()))
        trainer.run(BATCHES)
        assert not torch.equal(model[0].weight[2], before)
        moments = optimizer.state[model[0].weight]["exp_avg"]
        assert not moments[2].any()
        live = [i for i in range(6) if i != 2]
        assert (model[0].weight - kept[-1])[live].abs().max() < 0.01  # a step of Adam, no new draw

    def test_shrink_and_perturb_have_their_moments(self):
        drawn = w.ShrinkPerturb(0.4, 0.05)(torch.ones(200, 200))
        assert drawn.mean().item() == pytest.approx(0.4, abs=1e-3)
        assert drawn.std().item() == pytest.approx(0.05, rel=0.02)


@pytest.mark.parametrize("plugin", [w.Freeze, lambda **k: w.Unfreeze(["*"], 0.0, **k)], ids=["Freeze", "Unfreeze"])
def test_a_gradient_is_taken_away_after_the_penalties_or_not_at_all(plugin):
    model = nn.Linear(3, 2)
    with pytest.raises(ConfigurationError, match="GRADIENTS_READY and nowhere else"):
        Trainer(model, torch.optim.SGD(model.parameters()), nn.MSELoss(), plugins=[plugin(at="GRADIENTS_COMPUTED")])


def test_sharpness_of_some_weights_passes_the_write_guard():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    batch = (torch.randn(8, 3), torch.randn(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plugin = w.SharpnessAware(0.1, where="0")
    trainer = Trainer(model, optimizer, nn.MSELoss(), plugins=[plugin], debug=True, seed=0)
    trainer.run([batch], max_epochs=2)


@pytest.mark.parametrize("optimizer", ["Adam", "Adagrad", "Adafactor", "RMSprop", "Adadelta"])
def test_dormant_units_are_drawn_anew_under_every_optimizer(optimizer):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = -1.0, -100.0
    made = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
    trainer = Trainer(model, made, nn.MSELoss(), plugins=[w.ResetDormant(0.0, interval=3, where="0.weight")], seed=0)
    trainer.run([(torch.randn(8, 3), torch.randn(8, 2))] * 7, max_epochs=1)
    assert not torch.equal(model[0].weight[1].detach(), torch.full((3,), -1.0))


def test_rewinding_to_an_update_that_is_over_is_refused():
    model = nn.Linear(3, 2)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), nn.MSELoss())
    trainer.run([(torch.randn(8, 3), torch.randn(8, 2))] * 3, max_epochs=1)
    with pytest.raises(ConfigurationError, match="at update 3 already"):
        trainer.attach(w.Rewind(to=2))


def test_a_dormant_unit_of_a_parametrized_weight_is_refused():
    model = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    with pytest.raises(UnsupportedWeightError, match="is parametrized"):
        Trainer(model, torch.optim.SGD(model.parameters()), nn.MSELoss(), plugins=[w.ResetDormant(where="weight")])


def test_a_schedule_for_a_whole_number_is_rounded():
    resolved = w.Orthogonalize(steps=linear(1, 4, over=9)).resolved(Progress(update=5))
    assert resolved.steps == 3
    assert isinstance(resolved.steps, int)


def test_a_layer_that_is_frozen_again_and_joins_again_starts_clean_again():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    count = piecewise({0: 1, 2: 0, 4: 1})
    trainer = trainer_of(model, w.Unfreeze(["2"], count), optimizer=optimizer)
    seen = []

    def look():
        momentum = optimizer.state[model[2].weight].get("momentum_buffer")
        gradient = model[2].weight.grad
        fresh = momentum is not None and gradient is not None and torch.equal(momentum, gradient)
        seen.append("held" if gradient is None else "fresh" if fresh else "goes on")

    trainer.add_event_handler(WeightEvents.UPDATE_COMPLETED, look)
    trainer.run(BATCHES[:1] * 6, max_epochs=1)
    assert seen == ["fresh", "goes on", "held", "held", "fresh", "goes on"]


class Triangle(nn.Module):
    """A symmetric matrix from the values of one triangle: its raw parameter is a vector."""

    def __init__(self, size):
        super().__init__()
        self.places = torch.tril_indices(size, size)
        self.size = size

    def forward(self, raw):
        full = torch.zeros(self.size, self.size)
        full[*self.places] = raw
        return full + full.tril(-1).T

    def right_inverse(self, value):
        return value[*self.places]


@pytest.mark.parametrize("plugin", [w.AdaptiveClip(0.1), w.ClipUnitNorm(0.1), w.ClipNorm(0.1)])
def test_a_parametrization_that_changes_the_shape_is_edited_in_its_own(plugin):
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    for layer in model:
        nn.utils.parametrize.register_parametrization(layer, "weight", Triangle(4))
    data = [(torch.randn(8, 4), torch.arange(8) % 3)]
    trainer_of(model, plugin).run(data, max_epochs=2)
    raw = model[0].parametrizations.weight.original
    assert raw.grad.norm() <= 0.1 * max(1.0, raw.norm().item()) + 1e-6


def almost_one(progress):
    return 1.0 + 1e-9


def test_a_count_may_be_off_by_rounding():
    assert w.Unfreeze(["2"], almost_one).resolved(Progress()).count == 1.0 + 1e-9
