"""What Ignite says of its Engine holds of ours: the same script, on Ignite's engine and on each of ours, sees the same.

`make ignite` runs Ignite's own tests besides."""

import copy
import functools
import gc
import pickle
import weakref

import pytest
import torch
from ignite.engine import Engine, EventEnum, Events, State
from ignite.handlers import HandlersTimeProfiler
from weightsmith import Trainer, WeightEvents
from weightsmith.trainer.dispatch import Handlers
from weightsmith.trainer.loop import ResumableLoop


def trainers_engine(process, **options):
    model = torch.nn.ParameterList([torch.zeros(1)])
    return Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), step=process, **options)


OURS = {
    "loop": ResumableLoop,
    "trainer": trainers_engine,
    "debugging": functools.partial(trainers_engine, debug=True),
}
SCRIPTS = {}


def script(function):
    """What a user does with an engine: ``function(make, log)`` makes it, and writes down what is to be the same."""
    SCRIPTS[function.__name__] = function
    return function


def idle(engine, batch):
    return batch


def told(engine, log):
    """Let every event of Ignite's be written down, where it fires."""

    def write(engine, event, *_, **__):
        state = engine.state
        log.append((event.name, state.epoch, state.iteration, state.batch, state.output, engine.last_event_name.name))

    def failed(engine, error, event):
        write(engine, event)
        raise error

    for event in Events:
        if event is Events.TERMINATE_SINGLE_EPOCH:
            engine.add_event_handler(
                event, lambda engine, iter_counter: log.append(("TERMINATE_SINGLE_EPOCH", iter_counter))
            )
        else:
            engine.add_event_handler(event, failed if event is Events.EXCEPTION_RAISED else write, event)
    return engine


def attempt(log, action, *args, **kwargs):
    try:
        result = action(*args, **kwargs)
    except BaseException as error:
        log.append((type(error).__name__, str(error)))
        return None
    return result


# ---------------------------------------------------------------- which handlers run, in which order, with what


@script
def every_event(make, log):
    told(make(idle), log).run(range(3), max_epochs=2)


@script
def filters(make, log):
    engine = make(idle)
    kinds = {
        "every": {"every": 3},
        "once": {"once": 4},
        "once of several": {"once": [2, 5]},
        "before": {"before": 3},
        "after": {"after": 4},
        "between": {"after": 1, "before": 5},
        "every after": {"every": 2, "after": 1},
        "function": {"event_filter": lambda engine, count: count in (1, engine.state.iteration - 1)},
    }
    for event in (Events.ITERATION_STARTED, Events.EPOCH_COMPLETED, Events.GET_BATCH_STARTED):
        for name, chosen in kinds.items():
            what = (event.name, name)
            engine.add_event_handler(
                event(**chosen), lambda engine, what: log.append((what, engine.state.iteration)), what
            )
    engine.run(range(2), max_epochs=4)


@script
def added_during_its_event(make, log):
    engine = make(idle)

    def late(name):
        log.append((name, engine.state.iteration))

    @engine.on(Events.ITERATION_COMPLETED)
    def adding():
        late("adding")
        engine.add_event_handler(Events.ITERATION_COMPLETED, late, f"added in {engine.state.iteration}")

    engine.run(range(3))


@script
def removed_during_its_event(make, log):
    engine = make(idle)

    @engine.on(Events.ITERATION_COMPLETED)
    def removing():
        log.append(("removing", engine.state.iteration))
        for handler in (removing, removed):
            engine.remove_event_handler(handler, Events.ITERATION_COMPLETED)

    @engine.on(Events.ITERATION_COMPLETED)
    def removed():
        log.append(("removed", engine.state.iteration))

    @engine.on(Events.ITERATION_COMPLETED)
    def staying():
        log.append(("staying", engine.state.iteration))

    engine.run(range(2))


@script
def added_and_removed_by_other_events(make, log):
    engine = make(idle)
    handles = []

    @engine.on(Events.ITERATION_STARTED)
    def change():
        if engine.state.iteration % 2:
            handles.append(engine.add_event_handler(Events.ITERATION_COMPLETED, log.append, engine.state.iteration))
        else:
            handles.pop(0).remove()

    engine.run(range(4), max_epochs=2)


@script
def arguments(make, log):
    engine = make(idle)

    def note(*args, **kwargs):
        log.append((["the engine" if arg is engine else arg for arg in args], kwargs))

    class Noting:
        def __call__(self, engine, mark="called"):
            note(engine, mark)

        def method(self, mark):
            note(mark)

    engine.add_event_handler(Events.STARTED, note, 1, 2, key="word")
    engine.add_event_handler(Events.STARTED(event_filter=lambda *_: True), note, "filtered")
    engine.add_event_handler(Events.STARTED, lambda: log.append("nothing"))
    engine.add_event_handler(Events.STARTED, lambda *, key: log.append(key), key="only a key")
    engine.add_event_handler(Events.STARTED, functools.partial(note, "partial"))
    engine.add_event_handler(Events.STARTED, Noting())
    engine.add_event_handler(Events.STARTED, Noting().method, "method")
    engine.add_event_handler(Events.TERMINATE_SINGLE_EPOCH, note, "of an event with arguments")
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.terminate_epoch)
    with pytest.raises(ValueError, match=r"takes parameters .* but will be called with"):
        engine.add_event_handler(Events.EPOCH_STARTED, lambda engine, missing: None)
    engine.run(range(3))


@script
def a_weak_reference_of_the_users(make, log):
    """Ignite hands on what the first argument refers to, whatever it is; and refuses one that refers to nothing."""
    engine, owners = make(idle), [Engine(idle)]
    reference = weakref.ref(owners[0])
    engine.add_event_handler(Events.STARTED, lambda thing: log.append(thing is engine))
    engine.add_event_handler(Events.STARTED, lambda first, second: log.append(second() in owners), reference)
    engine.add_event_handler(Events.COMPLETED, lambda *, key: log.append(key() in owners), key=reference)
    engine._event_handlers[Events.STARTED].append((lambda thing: log.append(thing in owners), (reference,), {}))
    engine.run(range(1))
    owners.clear()
    gc.collect()
    attempt(log, engine.fire_event, Events.STARTED)


@script
def several_events_at_once(make, log):
    engine = make(idle)

    def note(engine):
        log.append((engine.last_event_name.name, engine.state.iteration))

    handle = engine.add_event_handler(Events.STARTED | Events.ITERATION_COMPLETED(every=2) | Events.COMPLETED, note)
    engine.run(range(4))
    log.append([engine.has_event_handler(note, event) for event in Events])
    handle.remove()
    log.append([engine.has_event_handler(note, event) for event in Events])
    engine.run(range(4))


@script
def handles(make, log):
    engine = make(idle)

    def note():
        log.append(engine.state.iteration)

    with engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), note) as handle:
        engine.run(range(4))
        log.append((engine.has_event_handler(note), engine.has_event_handler(note, Events.STARTED)))
    log.append((engine.has_event_handler(note), handle.engine() is engine))
    handle.remove()
    engine.run(range(4))
    attempt(log, engine.remove_event_handler, len, Events.ITERATION_COMPLETED)
    attempt(log, engine.remove_event_handler, note, "no event")


class Custom(EventEnum):
    HALF = "half"
    WHOLE = "whole"


@script
def events_of_the_users(make, log):
    engine = make(lambda engine, batch: engine.fire_event("stepped"))
    engine.register_events("stepped", *Custom, event_to_attr={Custom.HALF: "halves"})

    @engine.on(Events.ITERATION_COMPLETED(every=2))
    def halve():
        engine.state.halves += 1
        engine.fire_event(Custom.HALF)
        log.append(engine.last_event_name)

    @engine.on(Custom.HALF(every=2))
    def whole(engine):
        log.append(("half", engine.state.halves))
        engine.fire_event(Custom.WHOLE)

    engine.add_event_handler(Custom.HALF | Custom.WHOLE, lambda: log.append(engine.last_event_name.name))
    engine.add_event_handler("stepped", lambda: log.append(engine.last_event_name))
    log.append([engine.has_registered_events(event) for event in ("stepped", Custom.HALF, "other", Events.STARTED)])
    log.append(engine.state.halves)
    engine.run(range(4), max_epochs=2)
    with pytest.raises(ValueError, match="Event other is not a valid event"):
        engine.fire_event("other")
    with pytest.raises(ValueError, match="Event other is not a valid event"):
        engine.add_event_handler("other", halve)


@script
def a_profiler_that_wraps_handlers(make, log):
    """It writes into Ignite's private table of handlers while the run starts, and again when it ends."""

    def slow(engine, mark):
        log.append((mark, engine.state.iteration))

    engine = make(idle)
    profiler = HandlersTimeProfiler()
    profiler.attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, slow, "first")
    engine.run(range(3))
    timed = profiler.event_handlers_times[Events.ITERATION_COMPLETED]
    log.append([len(times) for name, times in timed.items() if "slow" in name])
    engine.add_event_handler(Events.ITERATION_COMPLETED, slow, "second")
    engine.run(range(2))
    log.append(engine.has_event_handler(slow, Events.ITERATION_COMPLETED))


CHANGES = {
    "append": lambda handlers, new: handlers.append(new),
    "insert at the beginning": lambda handlers, new: handlers.insert(0, new),
    "insert": lambda handlers, new: handlers.insert(2, new),
    "extend": lambda handlers, new: handlers.extend([new, new]),
    "+=": lambda handlers, new: handlers.__iadd__([new]),
    "*=": lambda handlers, new: handlers.__imul__(2),
    "one": lambda handlers, new: handlers.__setitem__(2, new),
    "a slice": lambda handlers, new: handlers.__setitem__(slice(1, 3), [new]),
    "del": lambda handlers, new: handlers.__delitem__(0),
    "pop": lambda handlers, new: handlers.pop(),
    "remove": lambda handlers, new: handlers.remove(handlers[2]),
    "remove what is not there": lambda handlers, new: handlers.remove(new),
    "reverse": lambda handlers, new: handlers.reverse(),
    "sort": lambda handlers, new: handlers.sort(key=lambda entry: -len(entry[1])),
    "sort by what some do not have": lambda handlers, new: handlers.sort(key=lambda entry: entry[1][0]),
    "clear": lambda handlers, new: handlers.clear(),
}


@script
def its_lists_of_handlers_written_to(make, log):
    """Before an event, between two, and while it fires: Ignite goes through a list that changes."""

    def try_out(name, change):
        engine = make(idle)
        engine.register_events(*Custom)
        engine.add_event_handler(Custom.HALF, log.append, name)
        for place in range(3):
            engine.add_event_handler(Custom.HALF, lambda *args: log.append(args[1:]), *range(place))
        handlers, new = engine._event_handlers[Custom.HALF], (log.append, ("new",), {})
        attempt(log, change, handlers, new)
        engine.fire_event(Custom.HALF)
        attempt(log, change, handlers, new)
        engine.fire_event(Custom.HALF)
        left = [change]

        def changing():
            log.append("changing")
            if left:
                attempt(log, left.pop(), handlers, new)

        engine.add_event_handler(Custom.HALF, changing)
        handlers.insert(0, handlers.pop())
        for _ in range(2):
            engine.fire_event(Custom.HALF)

    for name, change in CHANGES.items():
        try_out(name, change)


REPLACEMENTS = {
    "[]": lambda table, event, new: table.__setitem__(event, [new]),
    "+=": lambda table, event, new: table.__setitem__(event, table[event].__iadd__([new])),
    "a list that grows": lambda table, event, new: table.__setitem__(event, new_list := []) or new_list.append(new),
    "del": lambda table, event, new: table.__delitem__(event),
    "pop": lambda table, event, new: table.pop(event),
    "pop what is not there": lambda table, event, new: table.pop("nothing", None),
    "popitem": lambda table, event, new: table.popitem(),
    "clear": lambda table, event, new: table.clear(),
    "setdefault": lambda table, event, new: table.setdefault(event, []).append(new),
    "update": lambda table, event, new: table.update({event: [new]}),
    "update by a keyword": lambda table, event, new: table.update(handlers=[new], other=[new]),
    "|=": lambda table, event, new: table.__ior__({event: [new]}),
}


@script
def its_table_of_handlers_written_to(make, log):
    """Of events that were fired, and of one that was not."""

    def try_out(name, change, event):
        engine = make(idle)
        engine.register_events(*Custom, "other")
        engine.add_event_handler(Custom.HALF | Custom.WHOLE, log.append, name)
        for fired in (Custom.HALF, Custom.WHOLE, Custom.HALF, Custom.WHOLE):
            engine.fire_event(fired)
        attempt(log, change, engine._event_handlers, event, (log.append, ("new",), {}))
        engine.fire_event(event)
        engine.add_event_handler(event, log.append, "late")
        engine.fire_event(event)

    for name, change in REPLACEMENTS.items():
        for event in (Custom.HALF, Custom.WHOLE, "other"):
            try_out(name, change, event)


@script
def copies_of_its_table(make, log):
    """Who has a copy of a list or of the table has no part in the engine."""
    engine = make(idle)
    engine.register_events(*Custom)
    engine.add_event_handler(Custom.HALF, log.append, "kept")
    for _ in range(2):
        engine.fire_event(Custom.HALF)
    for copied in (copy.copy(engine._event_handlers), copy.deepcopy(engine._event_handlers)):
        log.append(copied.keys() == engine._event_handlers.keys())
        copied[Custom.HALF] = []
    copy.copy(engine._event_handlers[Custom.HALF]).clear()
    engine.fire_event(Custom.HALF)


@script
def arguments_that_an_event_leaves(make, log):
    """Ignite adds an event's keywords to those of its handlers, for good; one that raises keeps them as well."""
    engine = make(idle)
    engine.register_events(*Custom)

    inside = [Custom.HALF]

    def note(engine, mark="none", **kwargs):
        log.append((mark, kwargs))
        if kwargs.get("left") == 1 and inside:
            engine.fire_event(inside.pop())
        if kwargs.get("left") == 2:
            raise KeyError(mark)

    engine.add_event_handler(Custom.HALF, note)
    engine.add_event_handler(Custom.HALF, note, "mark")
    engine.add_event_handler(Custom.HALF, lambda **kwargs: log.append(kwargs))
    for left in range(3):
        attempt(log, engine.fire_event, Custom.HALF)
        attempt(log, engine._fire_event, Custom.HALF, left=left)
        for _, _, kwargs in engine._event_handlers[Custom.HALF]:
            kwargs.pop("left", None)
            kwargs["own"] = left
        attempt(log, engine.fire_event, Custom.HALF)


@script
def an_event_inside_itself(make, log):
    engine = make(idle)
    engine.register_events("again")

    @engine.on("again")
    def once_more():
        log.append("in")
        if len(log) < 3:
            engine.fire_event("again")
        log.append("out")

    engine.add_event_handler("again", lambda: log.append("after"))
    engine.fire_event("again")


# ---------------------------------------------------------------- ends


def at_each_event(make, log, act, data, **run):
    """Act once, at the second time that an event fires, or the first of one that fires once a run; and run on."""
    for event in Events:
        if event in (Events.EXCEPTION_RAISED, Events.INTERRUPT, Events.TERMINATE, Events.TERMINATE_SINGLE_EPOCH):
            continue
        log.append(f"at {event.name}")
        engine = told(make(idle), log)
        times = iter(range(1 if event in (Events.STARTED, Events.COMPLETED) else 2))

        def count(engine=engine, times=times):
            if next(times, None) is not None and not times.__length_hint__():
                act(engine)

        engine.add_event_handler(event, count)
        while attempt(log, engine.run, data, max_epochs=3, **run) is not None and len(log) < 1000:
            log.append((engine.state.epoch, engine.state.iteration, engine.should_terminate))
            if Engine._is_done(engine.state) and engine._internal_run_generator is None:
                break


@script
def terminated(make, log):
    at_each_event(make, log, lambda engine: engine.terminate(), range(3))


@script
def terminated_without_completed(make, log):
    at_each_event(make, log, lambda engine: engine.terminate(skip_completed=True), range(3))


@script
def epoch_terminated(make, log):
    at_each_event(make, log, lambda engine: engine.terminate_epoch(), None, epoch_length=3)


@script
def epoch_terminated_without_completed(make, log):
    at_each_event(make, log, lambda engine: engine.terminate_epoch(skip_epoch_completed=True), range(3))


@script
def interrupted(make, log):
    at_each_event(make, log, lambda engine: engine.interrupt(), range(3))


@script
def interrupted_again_and_again(make, log):
    engine = told(make(idle), log)
    engine.add_event_handler(Events.ITERATION_COMPLETED(every=2), engine.interrupt)
    for _ in range(5):
        if attempt(log, engine.run, range(4), max_epochs=2) is None:
            break
        log.append((engine.state.iteration, engine.state.epoch))


@script
def raised_in_the_step(make, log):
    def process(engine, batch):
        if engine.state.iteration == 2:
            raise KeyError("in the step")

    attempt(log, told(make(process), log).run, range(3))


@script
def raised_in_each_event(make, log):
    for event in (Events.STARTED, Events.EPOCH_STARTED, Events.ITERATION_STARTED, Events.EPOCH_COMPLETED):
        engine = told(make(idle), log)
        engine.add_event_handler(event, lambda: [][0])
        attempt(log, engine.run, range(2))


@script
def an_exception_that_a_handler_keeps(make, log):
    def process(engine, batch):
        raise KeyError("kept")

    engine = make(process)
    engine.add_event_handler(Events.EXCEPTION_RAISED, lambda engine, error: log.append(str(error)))
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda: log.append("goes on"))
    state = engine.run(range(3), max_epochs=2)
    log.append((state.iteration, state.epoch))


@script
def an_interrupted_keyboard(make, log):
    def process(engine, batch):
        raise KeyboardInterrupt

    attempt(log, told(make(process), log).run, range(3))


# ---------------------------------------------------------------- lengths, data and state


@script
def lengths(make, log):
    for data, settings in [
        (range(3), {"max_iters": 7}),
        (range(3), {"max_epochs": 2, "epoch_length": 5}),
        (None, {"max_epochs": 2, "epoch_length": 2}),
        (iter(range(5)), {}),
        (iter(range(3)), {"max_epochs": 2}),
        (iter(range(7)), {"max_iters": 4, "epoch_length": 3}),
        ((x for x in range(9)), {"max_epochs": 2, "epoch_length": 3}),
    ]:
        engine = told(make(idle), log)
        attempt(log, engine.run, data, **settings)
        log.append((engine.state.epoch, engine.state.iteration, engine.state.epoch_length, engine.state.max_epochs))


@script
def refused_runs(make, log):
    engine = make(idle)
    attempt(log, engine.run, 7)
    attempt(log, engine.run, None)
    attempt(log, engine.run, [])
    attempt(log, engine.run, range(2), max_epochs=1, max_iters=1)
    engine.run(range(2), max_epochs=2)
    attempt(log, engine.run, range(2), max_epochs=1)
    attempt(log, engine.run, range(2), max_iters=9)
    attempt(log, engine.run, range(2), max_epochs=3, epoch_length=5)


@script
def other_data(make, log):
    engine = told(make(idle), log)
    engine.add_event_handler(Events.ITERATION_COMPLETED(once=2), engine.set_data, "abcd")
    engine.run(range(4), max_epochs=2)


@script
def run_on_and_anew(make, log):
    engine = told(make(idle), log)
    for max_epochs in (1, 3, 3):
        engine.run(range(2), max_epochs=max_epochs)
    engine.state.max_epochs = None
    engine.run(range(2), max_epochs=1)


@script
def times(make, log):
    engine = make(idle)
    seen = []
    for event in (Events.EPOCH_COMPLETED, Events.COMPLETED):
        engine.add_event_handler(event, lambda engine, name: seen.append(engine.state.times[name]), event.name)
    engine.run(range(2), max_epochs=2)
    log.append([time > 0 for time in [*seen, *engine.state.times.values()]])
    log.append(list(engine.state.times))


@script
def keys_of_the_users(make, log):
    first, second = make(idle), make(idle)
    for engine in (first, second):
        engine.state_dict_user_keys.append("mark")
    first.state.mark = "made"
    first.run(range(4), max_epochs=3)
    second.load_state_dict(first.state_dict())
    log.append((second.state.mark, second.state.iteration, second.state.epoch))
    attempt(log, second.load_state_dict, {"iteration": 4, "epoch_length": 4, "max_epochs": 3})


@script
def states_of_another_engine(make, log):
    for state in [
        {"epoch": 1, "max_epochs": 3, "epoch_length": 2},
        {"iteration": 3, "max_epochs": 3, "epoch_length": 2},
        {"iteration": 3, "max_iters": 5, "epoch_length": 2},
        {"iteration": 0, "max_epochs": None, "epoch_length": None},
        {"iteration": 3, "epoch": 1, "max_epochs": 3, "epoch_length": 2},
        {"iteration": 3},
        "no state",
    ]:
        engine = told(make(idle), log)
        attempt(log, engine.load_state_dict, state)
        attempt(log, engine.run, range(2))


@script
def another_state_in_place(make, log):
    engine = told(make(idle), log)
    engine.state = State(mark="mine")
    engine.run(range(2))
    engine.state = State(iteration=2, epoch=1, epoch_length=2, max_epochs=3)
    engine.run(range(2))
    log.append([engine.state_dict()[key] for key in ("iteration", "epoch_length", "max_epochs")])


@pytest.mark.parametrize("interrupts", [True, False], ids=["interrupts", "no_interrupts"])
@pytest.mark.parametrize("ours", OURS)
@pytest.mark.parametrize("name", SCRIPTS)
def test_our_engines_do_as_ignites_does(name, ours, interrupts, monkeypatch):
    monkeypatch.setattr(Engine, "interrupt_resume_enabled", interrupts)
    expected, log = [], []
    SCRIPTS[name](Engine, expected)
    SCRIPTS[name](OURS[ours], log)
    assert expected
    assert log == expected


# ---------------------------------------------------------------- where Ignite says nothing


@pytest.mark.parametrize("debug", [False, True])
def test_handlers_of_weight_events_are_found_and_removed_as_any(debug):
    model = torch.nn.Linear(2, 1)
    trainer = Trainer(model, torch.optim.SGD(model.parameters(), lr=0.1), torch.nn.MSELoss(), debug=debug)
    seen = []

    def note(trainer, mark):
        seen.append((mark, trainer.state.update))

    both = WeightEvents.GRADIENTS_READY(every=2) | WeightEvents.UPDATE_COMPLETED
    handle = trainer.add_event_handler(both, note, "first")
    with trainer.add_event_handler(WeightEvents.STEP_COMPLETED(once=3), note, "second"):
        assert trainer.has_event_handler(note, WeightEvents.STEP_COMPLETED)
        trainer.run([(torch.ones(1, 2), torch.ones(1, 1))] * 3)
    assert seen == [("first", 1), ("first", 2), ("first", 2), ("second", 3), ("first", 3)]
    assert [event for event in WeightEvents if trainer.has_event_handler(note, event)] == list(both)
    handle.remove()
    assert not trainer.has_event_handler(note)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda table: pickle.loads(pickle.dumps(table))])
def test_a_copy_of_the_table_finds_its_own_lists(copied):
    table = Handlers()
    table[Events.STARTED].append((print, ("started",), {}))
    assert table.look_up(Events.STARTED) is table.by_id[id(Events.STARTED)]
    other = copied(table)
    assert other == table
    assert other.look_up(Events.STARTED) is other[Events.STARTED]
    other[Events.STARTED] = []
    assert table.by_id[id(Events.STARTED)] is table[Events.STARTED] != []


def test_a_list_that_is_replaced_while_it_is_looked_up_is_not_kept():
    class Replacing(Handlers):
        def __getitem__(self, event):
            found = super().__getitem__(event)
            self[event] = []  # as another thread may, before the list that was found is noted
            return found

    table = Replacing()
    table.look_up(Events.STARTED)
    assert not table.by_id


def test_no_other_event_is_taken_for_one_that_is_gone():
    """The table finds lists by the ``id`` of events, which is given to others when one is freed."""
    table = Handlers()
    table.look_up("GONE").append((print, (), {}))
    assert not table.by_id  # of what is no event, there may be ever new ones
    table.look_up(event := EventEnum("Short", {"GONE": "gone"}).GONE)
    reference = weakref.ref(event)
    del event
    gc.collect()
    assert reference() is not None
    table["other"] = []
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("ours", OURS)
def test_an_engine_that_nobody_holds_is_freed(ours):
    engine = OURS[ours](idle)
    engine.run(range(2))
    reference = weakref.ref(engine)
    del engine
    gc.collect()
    assert reference() is None


@pytest.mark.parametrize("ours", OURS)
def test_data_are_asked_for_an_iterator_once_a_pass(ours):
    """Of data that are their own iterator, asking may begin them anew."""

    class Rewinding:
        asked = 0

        def __iter__(self):
            self.asked, self.left = self.asked + 1, [1, 2, 3]
            return self

        def __next__(self):
            if not self.left:
                raise StopIteration
            return self.left.pop()

    data = Rewinding()
    OURS[ours](idle).run(data, max_epochs=2, epoch_length=3)
    assert data.asked == 2


@pytest.mark.parametrize("ours", OURS)
def test_a_run_that_raised_can_be_run_again(ours):
    """Ignite's returns nothing then, and trains nothing."""
    failures = [KeyError("once")]

    def process(engine, batch):
        if engine.state.iteration == 4 and failures:
            raise failures.pop()

    engine = OURS[ours](process)
    with pytest.raises(KeyError):
        engine.run(range(3), max_epochs=2)
    assert (engine.state.epoch, engine.state.iteration) == (1, 4)  # of the epochs, those that are whole
    state = engine.run(range(3), max_epochs=2)
    assert (state.epoch, state.iteration) == (2, 6)
