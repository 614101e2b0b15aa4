// SPDX-License-Identifier: MPL-2.0

//! What happens to a robot's machine.

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use droidrelay_testkit::process::poll;
use droidrelay_wire::{
    StreamState,
    words::topics::{OFFLINE, ONLINE},
};

use super::machine::{Camera, PATIENCE, Robot, spread};

pub struct Case {
    pub name: &'static str,
    pub must: &'static str,
    pub run: fn(&mut Robot, usize) -> Result<String>,
}

pub const ALL: &[Case] = &[
    Case {
        name: "boot",
        must: "idle, the camera closed; nobody has opened it since GStreamer's probing as its plugin was loaded",
        run: boot,
    },
    Case {
        name: "rounds, vivid",
        must: "live and idle each time; the camera closed after each",
        run: |robot, count| rounds(robot, count, Camera::Vivid),
    },
    Case {
        name: "rounds, USB",
        must: "live and idle each time; the camera closed, its light off after each",
        run: |robot, count| rounds(robot, count, Camera::Usb),
    },
    Case {
        name: "rounds, libcamera",
        must: "live and idle each time; the camera closed, its light off after each",
        run: |robot, count| rounds(robot, count, Camera::Libcamera),
    },
    Case {
        name: "unplugged while live",
        must: "online; the camera's error told; live again once it is back",
        run: unplugged,
    },
    Case {
        name: "unplugged while idle",
        must: "found again under its name at the next start",
        run: unplugged_idle,
    },
    Case {
        name: "frozen camera",
        must: "its silence told, and not live; live again once it is back",
        run: frozen,
    },
    Case {
        name: "camera driver's streaming error",
        must: "live again by itself",
        run: streaming_error,
    },
    Case {
        name: "camera missing at start, a viewer waits",
        must: "online and obeying; live once it is plugged in",
        run: missing,
    },
    Case {
        name: "size that the camera lacks",
        must: "what was asked and what it has is told",
        run: wrong_size,
    },
    Case {
        name: "disk full",
        must: "live goes on; the recording's fault is told, and its end",
        run: disk_full,
    },
    Case {
        name: "network cut for 30 s while live",
        must: "live again by itself",
        run: network_cut,
    },
    Case {
        name: "150 ms each way, 5 % loss",
        must: "start and stop are obeyed",
        run: bad_line,
    },
    Case {
        name: "process killed while live",
        must: "live again by itself",
        run: killed,
    },
    Case {
        name: "clock of 1970, set right while live",
        must: "online; start and stop are obeyed, whatever the clock says",
        run: clock,
    },
    Case {
        name: "power cut while live",
        must: "offline is told; after the boot online and idle, the camera closed",
        run: power_cut,
    },
];

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn boot(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Vivid, "usb-camera", "")?;
    let mark = robot.mark();
    let begin = Instant::now();
    robot.machine.power_cut()?;
    robot.wait_available(mark, ONLINE)?;
    robot.wait_state(mark, StreamState::Idle)?;
    let took = begin.elapsed();
    robot.wait_closed(Camera::Vivid)?;
    let opened = robot.machine.run(
        "ready=$(date -d \"$(systemctl show -P ActiveEnterTimestamp droidrelay@robot1)\" +%s)
         systemctl is-active -q opened
         awk -v ready=$ready '$1 > ready && $2 ~ /OPEN/' /run/opened",
    )?;
    ensure!(opened.is_empty(), "opened: {opened}");
    let status = robot.status()?;
    Ok(format!(
        "idle {} after the power came; systemctl says \"{status}\"",
        seconds(took)
    ))
}

fn rounds(robot: &mut Robot, count: usize, camera: Camera) -> Result<String> {
    robot.serve(camera, "usb-camera", "")?;
    let mark = robot.mark();
    let (mut live, mut idle, mut closed) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..count {
        let which = || format!("round {round}");
        live.push(robot.open().with_context(which)?);
        ensure!(robot.is_open(camera)?, "live without the camera");
        idle.push(robot.close().with_context(which)?);
        closed.push(robot.wait_closed(camera).with_context(which)?);
    }
    robot.was_never_offline(mark)?;
    Ok(format!(
        "{} rounds; live {}, idle {}, closed {} later (least/median/greatest)",
        count,
        spread(live),
        spread(idle),
        spread(closed),
    ))
}

fn unplugged(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Usb, "usb-camera", "")?;
    robot.open()?;
    let mark = robot.mark();
    robot.machine.usb.tell("unplug")?;
    let (_, state) = robot.wait(mark, "the camera's error", |state| {
        state.state == StreamState::Error && state.last_error.is_some()
    })?;
    let told = state.last_error.unwrap_or_default();
    let mark = robot.mark();
    robot.machine.usb.tell("plug")?;
    let back = Instant::now();
    let live = robot.wait_state(mark, StreamState::Live)? - back;
    robot.was_never_offline(mark)?;
    robot.close()?;
    robot.wait_closed(Camera::Usb)?;
    Ok(format!("\"{told}\"; live {} after the plug", seconds(live)))
}

fn unplugged_idle(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Usb, "usb-camera", "")?;
    robot.open()?;
    robot.close()?;
    robot.wait_closed(Camera::Usb)?;
    robot.machine.usb.tell("unplug")?;
    robot.wait_gone()?;
    robot.machine.usb.tell("plug")?;
    let name = poll(PATIENCE, || {
        robot
            .machine
            .run("basename $(readlink -e /dev/v4l/by-id/*index0)")
            .ok()
    });
    let name = name.context("the device does not come back")?;
    let live = robot.open()?;
    robot.close()?;
    robot.wait_closed(Camera::Usb)?;
    Ok(format!("it came back as {name}; live in {}", seconds(live)))
}

fn frozen(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Usb, "usb-camera", "")?;
    robot.open()?;
    let mark = robot.mark();
    robot.machine.usb.tell("freeze")?;
    let begin = Instant::now();
    let (at, state) = robot.wait(mark, "the camera's silence", |state| {
        state.state == StreamState::Error
    })?;
    let told = state.last_error.unwrap_or_default();
    let mark = robot.mark();
    robot.machine.usb.tell("thaw")?;
    let back = Instant::now();
    let live = robot.wait_state(mark, StreamState::Live)? - back;
    robot.close()?;
    Ok(format!(
        "told after {}: \"{told}\"; live {} after it",
        seconds(at - begin),
        seconds(live)
    ))
}

fn streaming_error(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Vivid, "usb-camera", "")?;
    robot.open()?;
    let mark = robot.mark();
    robot
        .machine
        .run("v4l2-ctl -d /dev/video0 -c inject_fatal_streaming_error=1")?;
    let (at, state) = robot.wait(mark, "the camera's error", |state| {
        state.state != StreamState::Live && state.last_error.is_some()
    })?;
    let told = state.last_error.unwrap_or_default();
    let mark = robot.mark();
    let live = robot.wait_state(mark, StreamState::Live)? - at;
    robot.close()?;
    robot.wait_closed(Camera::Vivid)?;
    Ok(format!("\"{told}\"; live after {}", seconds(live)))
}

fn missing(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Usb, "usb-camera", "")?;
    robot.open()?;
    robot.machine.usb.tell("unplug")?;
    robot.wait_gone()?;
    let mark = robot.mark();
    robot
        .machine
        .run("systemctl kill -s KILL droidrelay@robot1")?;
    robot.wait_available(mark, OFFLINE)?;
    let mark = robot.mark();
    robot.wait_available(mark, ONLINE)?;
    let (_, state) = robot.wait(mark, "the missing camera", |state| {
        state.state == StreamState::Error && state.last_error.is_some()
    })?;
    let told = state.last_error.unwrap_or_default();
    // It obeys meanwhile.
    robot.close()?;
    let online = robot.mark();
    robot.observer.send("start")?;
    robot.wait_state(online, StreamState::Error)?;
    robot.machine.usb.tell("plug")?;
    let back = Instant::now();
    let live = robot.wait_state(online, StreamState::Live)? - back;
    robot.was_online(online)?;
    robot.close()?;
    robot.wait_closed(Camera::Usb)?;
    Ok(format!("\"{told}\"; live {} after the plug", seconds(live)))
}

fn wrong_size(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Usb, "usb-camera", "WIDTH=1000\nHEIGHT=700")?;
    let mark = robot.mark();
    robot.observer.send("start")?;
    let (_, state) = robot.wait(mark, "what is wrong", |state| {
        let text = state.last_error.as_deref().unwrap_or_default();
        text.contains("1000") && text.contains("640")
    })?;
    robot.close()?;
    Ok(format!("\"{}\"", state.last_error.unwrap_or_default()))
}

fn disk_full(robot: &mut Robot, _: usize) -> Result<String> {
    robot.machine.run(
        "mkdir -p /var/lib/droidrelay/small
         mountpoint -q /var/lib/droidrelay/small || mount -t tmpfs -o size=3m tmpfs /var/lib/droidrelay/small
         chown droidrelay:droidrelay /var/lib/droidrelay/small",
    )?;
    let result = full(robot);
    robot
        .machine
        .run("systemctl stop droidrelay@robot1; umount /var/lib/droidrelay/small")?;
    result
}

fn full(robot: &mut Robot) -> Result<String> {
    robot.serve(
        Camera::Vivid,
        "recording",
        "CAMERA=v4l2src device=/dev/video0 ! videoconvert\nWIDTH=320\nHEIGHT=180\nRECORDINGS=/var/lib/droidrelay/small\nRECORDING_SECONDS=5",
    )?;
    let mark = robot.mark();
    robot.open()?;
    robot
        .machine
        .run("head -c 3m /dev/zero >/var/lib/droidrelay/small/full || true")?;
    let log = poll(PATIENCE, || {
        let log = robot.journal().ok()?;
        let line = log.lines().find(|line| line.contains("No space left"))?;
        Some(line.to_owned())
    });
    let log = log.context("the full disk is not told in the log")?;
    let left = robot.observer.seen().position(mark, |seen| {
        seen.state().is_some_and(|state| {
            !matches!(
                state.state,
                StreamState::Live | StreamState::Starting | StreamState::Idle
            )
        })
    });
    ensure!(left.is_none(), "the live view ended");
    robot.machine.run("rm /var/lib/droidrelay/small/full")?;
    let again = Instant::now();
    let recorded = poll(PATIENCE, || {
        let count = robot
            .machine
            .run("find /var/lib/droidrelay/small -name '*.ts' -size +20k -mmin -0.2 | wc -l")
            .ok()?;
        (count.parse::<u32>().ok()? > 0).then_some(())
    });
    recorded.context("the recording does not go on")?;
    let took = again.elapsed();
    robot.close()?;
    let log: String = log.chars().take(160).collect();
    Ok(format!(
        "\"{log}\"; recording again after {}",
        seconds(took)
    ))
}

fn network_cut(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Vivid, "usb-camera", "")?;
    robot.open()?;
    robot.machine.set_network(false)?;
    // As long as the fault lasts.
    thread::sleep(Duration::from_secs(30));
    robot.machine.set_network(true)?;
    let back = Instant::now();
    robot.wait_live_status()?;
    let took = back.elapsed();
    robot.close()?;
    Ok(format!("live {} after it", seconds(took)))
}

fn bad_line(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Vivid, "usb-camera", "")?;
    robot
        .machine
        .run("tc qdisc add dev eth0 root netem delay 300ms loss 5%")?;
    let result = robot.open().and_then(|live| Ok((live, robot.close()?)));
    robot.machine.run("tc qdisc del dev eth0 root")?;
    let (live, idle) = result?;
    Ok(format!(
        "live after {}, idle after {}",
        seconds(live),
        seconds(idle)
    ))
}

fn killed(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Vivid, "usb-camera", "")?;
    robot.open()?;
    let mark = robot.mark();
    robot
        .machine
        .run("systemctl kill -s KILL droidrelay@robot1")?;
    let begin = Instant::now();
    robot.wait_available(mark, ONLINE)?;
    let live = robot.wait_state(mark, StreamState::Live)? - begin;
    robot.close()?;
    robot.wait_closed(Camera::Vivid)?;
    Ok(format!("live after {}", seconds(live)))
}

fn clock(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Vivid, "usb-camera", "")?;
    // Not by the hardware's clock: systemd sets the time of its own making where that is later.
    let mark = robot.mark();
    robot.machine.run(
        "systemctl stop droidrelay@robot1; systemctl stop systemd-timesyncd
         date -s 1970-01-02; systemctl start droidrelay@robot1",
    )?;
    let result = obeys_by_a_wrong_clock(robot, mark);
    robot
        .machine
        .run("systemctl restart droidrelay@robot1; systemctl start systemd-timesyncd")?;
    result
}

fn obeys_by_a_wrong_clock(robot: &Robot, mark: usize) -> Result<String> {
    robot.wait_available(mark, OFFLINE)?;
    let mark = robot.mark();
    robot.wait_available(mark, ONLINE)?;
    let year = robot.machine.run("date +%Y")?;
    ensure!(year == "1970", "the machine's clock says {year}");
    let live = robot.open()?;
    let mark = robot.mark();
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    robot.machine.run(&format!("date -s @{now}"))?;
    robot.wait_live_status()?;
    let idle = robot.close()?;
    robot.was_never_offline(mark)?;
    robot.wait_closed(Camera::Vivid)?;
    Ok(format!(
        "live in {}; set right while live, idle in {}",
        seconds(live),
        seconds(idle)
    ))
}

fn power_cut(robot: &mut Robot, _: usize) -> Result<String> {
    robot.serve(Camera::Vivid, "usb-camera", "")?;
    robot.open()?;
    let mark = robot.mark();
    let begin = Instant::now();
    robot.machine.power_cut()?;
    let offline = robot.wait_available(mark, OFFLINE)?;
    let online = robot.wait_available(mark, ONLINE)?;
    robot.wait_state(mark, StreamState::Idle)?;
    robot.wait_closed(Camera::Vivid)?;
    Ok(format!(
        "offline after {}, online {} after the power came",
        seconds(offline - begin),
        seconds(online - begin)
    ))
}
