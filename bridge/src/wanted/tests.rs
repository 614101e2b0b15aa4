// SPDX-License-Identifier: MPL-2.0

//! What is wanted of a robot, by what bridges hear, with a clock of the test's own.

use super::{ConnectionAge::*, Delivery::*, *};
use crate::view::Availability::*;

const WALL: Duration = Duration::from_secs(1_700_000_000);

fn at(seconds: u64) -> Now {
    let monotonic = Duration::from_secs(seconds);
    Now {
        monotonic,
        wall: WALL + monotonic,
    }
}

fn board(id: &str) -> LeaseTable {
    LeaseTable::new(id.into(), WALL)
}

fn start(id: &str, lease: u64) -> Command {
    Command::Start {
        id: Some(id.into()),
        lease: Some(Duration::from_secs(lease)),
    }
}

fn heard(command: &Command) -> Heard<'_> {
    Heard {
        command,
        expiry: None,
        is_kept: false,
    }
}

fn obey(board: &LeaseTable, command: &Command, now: u64) {
    board.obey("r1", &heard(command), Online, Settled, at(now));
}

fn ids(answer: &Answer) -> Vec<Option<&str>> {
    let leases = answer.wanted.leases.iter();
    leases.map(|lease| lease.id.as_deref()).collect()
}

#[test]
fn each_change_of_what_is_wanted_has_a_version_and_a_duplicate_has_none() {
    let board = board("a");
    board.polled("r1", Duration::ZERO, at(0));
    let mut last = board.answer("r1", at(0));
    assert_eq!((last.wanted.open, last.keyframe), (false, 0));
    for (command, now, changes) in [
        (Command::start(), 0, true),
        (Command::start(), 1, false),
        (start("a", 30), 1, true),
        (start("a", 30), 2, true),
        (Command::Keyframe, 2, true),
        (Command::Stop { id: None }, 3, true),
        (Command::stop(), 3, false),
        (Command::Keyframe, 3, false),
    ] {
        obey(&board, &command, now);
        let answer = board.answer("r1", at(now));
        assert_eq!(answer.version != last.version, changes, "{command:?}");
        last = answer;
    }
    assert_eq!((last.wanted.open, last.keyframe), (false, 1));
}

#[test]
fn a_lease_is_told_by_what_is_left_of_it_and_ends_at_its_time() {
    let board = board("a");
    obey(&board, &Command::start(), 0);
    obey(&board, &start("phone", 30), 0);
    let answer = board.answer("r1", at(10));
    assert_eq!(ids(&answer), [None, Some("phone")]);
    assert_eq!(answer.wanted.leases[0].lease, None);
    assert_eq!(answer.wanted.leases[1].lease, Some(20.0));
    assert_eq!(board.next_deadline(), Some(at(30).monotonic));
    let watcher = board.watch("r1");
    board.expire(at(30));
    assert!(watcher.receiver.has_changed().unwrap());
    assert_eq!(ids(&board.answer("r1", at(30))), [None]);
}

#[test]
fn a_robot_of_which_nothing_is_wanted_keeps_its_version_and_costs_nothing() {
    let board = board("a");
    let first = board.answer("r1", at(0));
    assert_eq!(board.answer("r1", at(5)), first);
    obey(&board, &Command::start(), 6);
    obey(&board, &Command::stop(), 7);
    assert!(board.answer("r1", at(7)).version > first.version);
    drop(board.watch("r1"));
    assert!(board.inner.lock().robots.is_empty() && board.inner.lock().deadlines.is_empty());
}

#[test]
fn a_robot_that_polls_is_silent_after_its_wait_and_the_grace() {
    let board = board("a");
    assert!(board.polled("r1", Duration::from_secs(30), at(0)));
    board.told("r1", Online, Speaker::Bridge, at(0));
    assert!(!board.polled("r1", Duration::from_secs(30), at(5)));
    assert!(board.polled("r1", Duration::from_secs(30), at(10)));
    assert!(board.expire(at(54)).is_empty());
    assert_eq!(board.expire(at(55)), ["r1"]);
    assert!(!board.polls("r1"));
}

#[test]
fn what_another_bridge_says_of_a_robot_that_polls_there_is_believed_for_a_while() {
    let board = board("b");
    board.told("r1", Online, Speaker::Bridge, at(0));
    assert!(board.polls("r1"));
    assert!(board.expire(at(74)).is_empty());
    assert_eq!(board.expire(at(75)), ["r1"]);
    // Where it polls here, the other one is contradicted.
    board.polled("r1", Duration::ZERO, at(80));
    board.told("r1", Offline, Speaker::Bridge, at(81));
    assert!(board.polls("r1"));
    assert_eq!(board.unannounced(), ["r1"]);
    // By its own words it is a robot with MQTT.
    board.told("r1", Online, Speaker::Robot, at(82));
    assert!(!board.polls("r1"));
    assert!(board.expire(at(500)).is_empty());
}

#[test]
fn a_start_for_a_robot_that_stays_offline_is_over_after_two_minutes() {
    let board = board("a");
    board.obey("r1", &heard(&Command::start()), Offline, Settled, at(1000));
    assert!(board.expire(at(1119)).is_empty());
    assert!(board.is_open("r1"));
    board.expire(at(1120));
    assert!(!board.is_open("r1"));
    // One that comes back in time still finds it.
    board.obey("r1", &heard(&Command::start()), Offline, Settled, at(2000));
    board.polled("r1", Duration::ZERO, at(2100));
    board.expire(at(2114));
    assert!(board.is_open("r1"));
}

#[test]
fn the_note_carries_everything_over_to_another_bridge() {
    let one = board("a");
    one.polled("r1", Duration::ZERO, at(0));
    obey(&one, &Command::start(), 0);
    obey(&one, &start("phone", 30), 0);
    obey(&one, &Command::Keyframe, 0);
    let [(name, note)] = one.unwritten(at(0)).try_into().unwrap();
    assert!(one.unwritten(at(0)).is_empty());
    let text = serde_json::to_string(&note).unwrap();
    let two = board("b");
    // Another machine was started at another time.
    let later = Now {
        monotonic: Duration::from_secs(7),
        wall: WALL + Duration::from_secs(10),
    };
    two.read(
        &name,
        &serde_json::from_str(&text).unwrap(),
        Retained,
        Settled,
        later,
    );
    let expected = one.answer("r1", at(10));
    assert_eq!(two.answer("r1", later), expected);
    assert_eq!(expected.wanted.leases[1].lease, Some(20.0));
}

#[test]
fn a_note_that_was_written_before_a_command_changes_nothing_of_it() {
    let (one, two) = (board("a"), board("b"));
    one.polled("r1", Duration::ZERO, at(0));
    obey(&one, &start("missed", 30), 0);
    obey(&one, &start("stopped", 30), 0);
    let [(name, note)] = one.unwritten(at(0)).try_into().unwrap();
    let stop = Command::Stop {
        id: Some("stopped".into()),
    };
    for command in [start("phone", 30), stop] {
        two.obey("r1", &heard(&command), Online, Young, at(1));
    }
    let ids = || {
        let leases = two.answer("r1", at(1)).wanted.leases.into_iter();
        let mut ids: Vec<_> = leases.filter_map(|lease| lease.id).collect();
        ids.sort_unstable();
        ids
    };
    two.read(&name, &note, Live, Young, at(1));
    assert_eq!(ids(), ["missed", "phone"]);
    two.obey("r1", &heard(&Command::stop()), Online, Young, at(1));
    two.read(&name, &note, Live, Young, at(1));
    assert!(ids().is_empty());
    two.connected();
    two.read(&name, &note, Retained, Young, at(1));
    assert_eq!(ids(), ["missed", "stopped"]);
}

#[test]
fn notes_of_a_bridge_beside_this_one_count_by_their_numbers_only() {
    let (one, two) = (board("a"), board("b"));
    for board in [&one, &two] {
        board.polled("r1", Duration::ZERO, at(0));
        obey(board, &start("phone", 30), 0);
    }
    obey(&one, &Command::Keyframe, 1);
    let [(name, note)] = one.unwritten(at(1)).try_into().unwrap();
    obey(&two, &Command::stop(), 1);
    obey(&two, &Command::stop(), 1);
    two.read(&name, &note, Live, Settled, at(1));
    let answer = two.answer("r1", at(1));
    assert!(!answer.wanted.open, "its own commands decide");
    assert_eq!(answer.keyframe, 1);
    let [(name, answered)] = two.unwritten(at(1)).try_into().unwrap();
    one.read(&name, &answered, Live, Settled, at(1));
    assert_eq!(one.answer("r1", at(1)).version, answer.version);
    let mut old = note;
    old.version = 0;
    one.read(&name, &old, Live, Young, at(1));
    assert!(one.is_open("r1"), "its own note tells it nothing");
}

#[tokio::test]
async fn a_robot_is_told_what_the_broker_keeps_and_nothing_before() {
    let board = board("a");
    board.polled("r1", Duration::ZERO, at(0));
    obey(&board, &start("phone", 30), 0);
    let mut noted = Box::pin(board.is_noted("r1"));
    assert!(futures_util::poll!(noted.as_mut()).is_pending());
    let (_, old) = board.unwritten(at(0)).pop().unwrap();
    obey(&board, &start("tablet", 30), 0);
    board.noted("r1", old.version);
    // That one is kept; what has come since is not.
    noted.await;
    let mut noted = Box::pin(board.is_noted("r1"));
    assert!(futures_util::poll!(noted.as_mut()).is_pending());
    let (_, new) = board.unwritten(at(0)).pop().unwrap();
    board.noted("r1", new.version);
    noted.await;
    // Another bridge's note is as good.
    board.noted("r1", old.version);
    board.is_noted("r1").await;
    // Nothing is wanted of a robot that nobody knows.
    board.is_noted("r2").await;
}

#[test]
fn a_lease_that_ends_is_known_by_its_holder() {
    let board = board("a");
    obey(&board, &start("phone", 30), 5);
    obey(&board, &Command::start(), 5);
    assert_eq!(board.lease_of("r1", "phone"), Some(at(35).monotonic));
    for holder in ["tablet", "*"] {
        assert_eq!(board.lease_of("r1", holder), None);
    }
}

#[test]
fn a_robot_that_comes_back_is_told_what_it_may_have_missed_and_no_more() {
    const EXPIRY: Duration = Duration::from_secs(30);
    let stop = |id: &str| Command::Stop {
        id: Some(id.into()),
    };
    let repeat = |board: &LeaseTable, seen: Option<u64>, now| {
        let seen = seen.map(Duration::from_secs);
        board.repeat("r1", seen, EXPIRY, at(now))
    };
    // A stop that was sent while it was away, or just before that was noticed.
    for (sent, seen, expected) in [
        (110, Some(100), true),
        (50, Some(100), true),
        (10, None, true),
        (10, Some(100), false),
    ] {
        let board = board("a");
        obey(&board, &start("a", 600), 0);
        obey(&board, &Command::stop(), sent);
        let told = if expected {
            vec![Command::stop()]
        } else {
            vec![]
        };
        assert_eq!(repeat(&board, seen, 120), told, "{sent} {seen:?}");
        assert_eq!(repeat(&board, seen, 121), [], "once");
    }
    // Leases that live, with what is left of them; a start after a stop is behind it.
    let living = board("a");
    obey(&living, &start("a", 600), 0);
    obey(&living, &start("b", 600), 0);
    obey(&living, &stop("b"), 1);
    obey(&living, &start("c", 5), 1);
    living.expire(at(10));
    assert_eq!(repeat(&living, Some(5), 10), [stop("b"), start("a", 590)]);
    // A start that found it away is good for a while only.
    for (now, told) in [(40, vec![start("d", 590)]), (41, vec![])] {
        let board = board("a");
        board.obey("r1", &heard(&start("d", 620)), Offline, Settled, at(10));
        assert_eq!(repeat(&board, Some(5), now), told, "at {now}");
    }
    // One that its sender has given less time is over with it, though it was not yet known that
    // the robot had gone; not where the robot was seen to obey it.
    let brief = Heard {
        command: &start("e", 600),
        expiry: Some(Duration::from_secs(3)),
        is_kept: false,
    };
    for (seen_by, now, told) in [
        (None, 12, vec![start("e", 598)]),
        (None, 15, vec![]),
        (Some(("e", false)), 15, vec![start("e", 595)]),
        (Some(("other", false)), 15, vec![]),
        (Some(("other", true)), 15, vec![start("e", 595)]),
    ] {
        let board = board("a");
        board.obey("r1", &brief, Online, Settled, at(10));
        if let Some((viewer, more)) = seen_by {
            board.seen_obeyed("r1", &[viewer.into()], more);
            // Nor does a renewal take it back.
            board.obey("r1", &brief, Online, Settled, at(10));
        }
        assert_eq!(repeat(&board, Some(12), now), told, "{seen_by:?} at {now}");
    }
}

#[test]
fn a_start_that_the_broker_keeps_is_not_told_again() {
    const EXPIRY: Duration = Duration::from_secs(30);
    fn kept(command: &Command) -> Heard<'_> {
        Heard {
            is_kept: true,
            ..heard(command)
        }
    }
    let back =
        |board: &LeaseTable, now| board.repeat("r1", Some(at(now).monotonic), EXPIRY, at(now));
    for availability in [Online, Offline] {
        let board = board("a");
        board.obey("r1", &kept(&start("a", 600)), availability, Settled, at(0));
        board.obey("r1", &heard(&start("b", 600)), availability, Settled, at(0));
        assert!(board.is_open("r1"), "it counts all the same");
        assert_eq!(back(&board, 1), [start("b", 599)]);
        board.seen_obeyed("r1", &["a".into(), "b".into()], false);
        assert_eq!(back(&board, 2), [start("b", 598)], "each time");
        // Said anew by somebody who does not let it be kept, it is like others; a stop ends that.
        board.obey("r1", &heard(&start("a", 600)), Online, Settled, at(2));
        assert_eq!(back(&board, 2), [start("a", 600), start("b", 598)]);
        board.obey("r1", &kept(&start("a", 600)), Online, Settled, at(2));
        obey(&board, &Command::stop(), 3);
        assert_eq!(back(&board, 4), [Command::stop()]);
    }
}
