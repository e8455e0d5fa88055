"""The share of the time that devices wait, on a clock and devices of which everything is known."""

import pytest

from tll_jax.training import pace


class World:
    """A clock, and a device that takes `device` seconds a step, fed every `reading` seconds. With `overlaps`, it works
    on a step while that is dispatched."""

    def __init__(self, *, device, reading, dispatch, overlaps=False):
        self.now, self.done_at, self.ready_at = 100.0, 0.0, 100.0
        self.device, self.reading, self.dispatch, self.overlaps = device, reading, dispatch, overlaps
        self.busy = 0.0

    def perf_counter(self):
        return self.now

    def take(self, look):
        while self.now < self.ready_at:
            self.now = min(self.ready_at, self.now + 0.001) if look() else self.ready_at
        self.ready_at = self.now + self.reading

    def train(self, measured, num_steps):
        losses = []
        for _ in range(num_steps):
            measured.next_batch(self)
            started = self.now
            self.now += self.dispatch
            self.done_at = max(started if self.overlaps else self.now, self.done_at) + self.device
            if self.overlaps:
                # Its last kernel is launched at the end.
                self.done_at = max(self.done_at, self.now)
            losses.append(Loss(self, self.done_at))
            measured.dispatched(losses[-1])
            if len(losses) > 2:
                self.now = max(self.now, losses.pop(0).done_at)


class Loss:
    """There from `done_at` on."""

    def __init__(self, world, done_at):
        self.world, self.done_at = world, done_at

    def is_ready(self):
        return self.world.now >= self.done_at


@pytest.fixture
def world_of(monkeypatch):
    def make(**times):
        world = World(**times)
        monkeypatch.setattr(pace, "time", world)
        return world, pace.Pace(images_a_step=10)

    return make


@pytest.mark.parametrize(
    ("times", "rate", "idle", "for_data", "dispatch", "advice"),
    [
        ({"device": 0.1, "reading": 0.0, "dispatch": 0.004}, 100, 0, 0, 0, "device idle 0%"),
        ({"device": 0.1, "reading": 0.02, "dispatch": 0.004}, 100, 0, 0, 0, "device idle 0%"),
        # A step every 0.1 + 0.004 seconds, of which the device works 0.03.
        ({"device": 0.03, "reading": 0.1, "dispatch": 0.004}, 96, 0.67, 0.67, 0.04, "waiting for pictures, more"),
        # A step every 0.1 seconds; that the one before it was done after 0.03 is seen after the dispatch.
        ({"device": 0.03, "reading": 0.0, "dispatch": 0.1}, 100, 0, 0, 0.5, "launching 50%: a larger batch_size"),
        # Many small kernels, each of which takes less time than its launch.
        ({"device": 0.03, "reading": 0.0, "dispatch": 0.1, "overlaps": True}, 100, 0, 0, 1, "launching 100%: a larger"),
    ],
    ids=["the device", "the device, just", "reading", "dispatch", "dispatch of many kernels"],
)
def test_idle_time_of_devices_is_measured_with_its_cause(world_of, times, rate, idle, for_data, dispatch, advice):
    world, measured = world_of(**times)
    world.train(measured, 4)
    measured.record()
    world.train(measured, 50)
    found = measured.record()
    assert found["images_per_second"] == pytest.approx(rate, rel=0.05)
    assert found["device_idle_fraction"] == pytest.approx(idle, abs=0.03)
    assert found["device_idle_for_data_fraction"] == pytest.approx(for_data, abs=0.03)
    assert found["dispatch_fraction"] == pytest.approx(dispatch, abs=0.03)
    assert advice in pace.describe(found)


def test_pauses_are_left_out_of_the_time(world_of):
    world, measured = world_of(device=0.05, reading=0.0, dispatch=0.0)
    world.train(measured, 10)
    world.now = world.done_at
    measured.drained()
    measured.record()
    with measured.paused():
        world.now += 1000
    started = world.now
    world.train(measured, 10)
    world.now = world.done_at
    assert measured.record() == {
        "seconds": round(world.now - started, 3),
        "images_per_second": 200.0,
        "device_idle_fraction": 0.0,
        "device_idle_for_data_fraction": 0.0,
        "dispatch_fraction": 0.0,
    }


def test_work_of_the_loop_on_drained_devices_is_idle_time(world_of):
    world, measured = world_of(device=0.05, reading=0.0, dispatch=0.0)
    world.train(measured, 1)
    world.now = world.done_at
    measured.drained()
    measured.record()
    # It writes a record before it saves.
    world.now += 0.05
    with measured.paused():
        world.now += 1
    world.train(measured, 1)
    world.now = world.done_at
    assert measured.record()["device_idle_fraction"] == 0.5


def test_a_short_dispatch_gives_no_advice():
    values = {"images_per_second": 800.0, "device_idle_fraction": 0.0, "device_idle_for_data_fraction": 0.0}
    assert pace.describe(values | {"dispatch_fraction": 0.06}) == "800 images/s, device idle 0%"
