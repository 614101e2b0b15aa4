// SPDX-License-Identifier: MPL-2.0

//! Looking starts the robot: no app, no button, whatever the player; and whatever fails, nothing
//! goes on streaming that nobody looks at.

use std::time::Duration;

use droidrelay_testkit::{
    certs::Login,
    clients::{
        browser::{Browser, Screen},
        observer::Seen,
        reader::Reader,
    },
    journal::DEADLINE,
    net::http,
    process::poll,
    servers::{
        cloud::{Cloud, LEASE, Media, ROBOT},
        relay::Kind,
    },
    testbed::TEST_PICTURE,
};
use droidrelay_wire::StreamState;
use serde_json::json;

/// Pictures at which a session has long stopped to ask for key frames by itself.
const SETTLED: usize = 120;

fn cloud() -> Option<Cloud> {
    if Kind::MediaMtx.notice_if_absent() {
        return None;
    }
    Some(Cloud::start(Media::WebRtc).unwrap())
}

/// Waits until the robot's last word is that it is idle; the lease and some more may pass.
fn wait_idle(cloud: &Cloud) {
    let idle = poll(DEADLINE + Duration::from_secs(LEASE), || {
        let all = cloud.observer.seen().all();
        let last = all.iter().rev().find_map(|seen| seen.state())?;
        (last.state == StreamState::Idle).then_some(())
    });
    cloud.shows(
        &idle.ok_or_else(|| anyhow::anyhow!("still open: {:?}", cloud.observer.seen().last())),
    );
}

fn has_opened(cloud: &Cloud, mark: usize) -> bool {
    let open = |seen: &Seen| {
        seen.state()
            .is_some_and(|state| state.state != StreamState::Idle)
    };
    cloud.observer.seen().position(mark, open).is_some()
}

#[test]
fn who_opens_rtsp_sees_the_robot_and_when_he_leaves_its_camera_is_off() {
    let Some(cloud) = cloud() else { return };
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    for round in 0..2 {
        let mark = cloud.observer.seen().mark();
        let mut viewer = cloud.view().unwrap_or_else(|err| {
            panic!(
                "{err:#}\n{}\n{}",
                cloud.media().text(),
                cloud.bridge().text()
            )
        });
        let first = viewer.first_picture().unwrap();
        println!(
            "round {round}: RTSP, first picture {first:?} after connecting, the robot idle before"
        );
        let mut second = cloud.view().unwrap();
        second.first_picture().unwrap();
        // Their program crashed: nothing is said.
        drop(viewer);
        assert!(second.gets_media(DEADLINE).unwrap(), "one still looks");
        drop(second);
        assert!(has_opened(&cloud, mark));
        wait_idle(&cloud);
    }
}

#[test]
fn who_opens_hls_sees_the_robot_and_when_he_leaves_its_camera_is_off() {
    let Some(cloud) = cloud() else { return };
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let reader = Reader::start(&cloud.hls_url(), None).unwrap();
    cloud.shows(&reader.wait_frames(30).map(drop));
    drop(reader);
    wait_idle(&cloud);
}

/// Nobody but the bridge is asked, and MediaMTX's session goes on when the link's time is over.
#[test]
fn who_opens_hls_at_the_bridge_by_a_link_sees_the_robot_and_when_they_leave_its_camera_is_off() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    let cloud = Cloud::start(Media::HlsHandedOn).unwrap();
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let ask = |method, path: &str, login: &str| {
        http::request(cloud.address(), method, path, login).unwrap()
    };
    let stranger = Login {
        password: "guessed".into(),
        ..cloud.viewer.clone()
    };
    let playlist = format!("/robots/{ROBOT}/hls/index.m3u8");
    assert_eq!(ask("GET", &playlist, &stranger.basic()).status, 401);
    let playlist = format!("{playlist}?share={}", cloud.share(8).unwrap());
    let url = format!("http://{}{playlist}", cloud.address());
    let reader = Reader::start(&url, None).unwrap();
    cloud.shows(&reader.wait_frames(30).map(drop));
    let is_over = poll(DEADLINE, || {
        (ask("HEAD", &playlist, "").status == 401).then_some(())
    });
    assert!(is_over.is_some(), "{}", cloud.bridge().text());
    let after = reader.frames().mark() + 60;
    cloud.shows(&reader.wait_frames(after).map(drop));
    drop(reader);
    wait_idle(&cloud);
}

#[test]
fn who_opens_webrtc_sees_the_robot_and_when_he_leaves_its_camera_is_off() {
    let Some(cloud) = cloud() else { return };
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open("about:blank", Screen::DESKTOP).unwrap();
    page.call("Network.enable", json!({})).unwrap();
    let headers = json!({ "headers": { "Authorization": cloud.viewer.basic() } });
    page.call("Network.setExtraHTTPHeaders", headers).unwrap();
    // MediaMTX's own page, which knows nothing of robots.
    page.go(&format!("{}/?muted=true", cloud.webrtc_url()))
        .unwrap();
    cloud.shows(&page.wait("document.querySelector('video')?.currentTime > 0.5"));
    page.close().unwrap();
    wait_idle(&cloud);
}

#[test]
fn a_stranger_starts_nothing() {
    let Some(cloud) = cloud() else { return };
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let mark = cloud.observer.seen().mark();
    let Login { user, .. } = cloud.viewer.clone();
    let stranger = Login {
        user,
        password: "guessed".into(),
    };
    let error = cloud.view_as(&stranger).err().expect("refused");
    assert!(format!("{error:#}").contains("401"), "{error:#}");
    // Who is let in would be seen to be waiting in the log, and then at the robot.
    assert!(!cloud.media().text().contains("runOnDemand command started"));
    assert!(!has_opened(&cloud, mark));
}

/// The robot's encoder makes a key frame every ten seconds, and whoever joins sees a picture at
/// once all the same.
#[test]
fn who_joins_a_running_stream_gets_a_key_frame_at_once() {
    let Some(cloud) = cloud() else { return };
    let long_gop = "x264enc tune=zerolatency speed-preset=ultrafast bitrate=1500 key-int-max=300";
    let _robot = cloud.robot_with(TEST_PICTURE, long_gop).unwrap();
    let first = Reader::start(&cloud.rtsp_url(), None).unwrap();
    cloud.shows(&first.wait_frames(SETTLED).map(drop));
    let mut waits = Vec::new();
    for _ in 0..7 {
        let before = first.frames().mark();
        let mut viewer = cloud.view().unwrap();
        waits.push(viewer.first_picture().unwrap());
        drop(viewer);
        // A robot makes at most two key frames a second on request.
        first.wait_frames(before + 30).unwrap();
    }
    waits.sort();
    println!(
        "key frame each 10 s, RTSP, from connecting to the first whole picture: median {:?}, all {waits:?}",
        waits[3]
    );
    // Without being asked for one, it would be five seconds at the median.
    assert!(waits[3] < Duration::from_secs(2), "{waits:?}");
}

#[test]
fn a_media_server_that_dies_leaves_no_robot_streaming() {
    let Some(mut cloud) = cloud() else { return };
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let mut viewer = cloud.view().unwrap();
    viewer.first_picture().unwrap();
    cloud.kill_media();
    wait_idle(&cloud);
    // And the next one sees it as if nothing had been.
    cloud.restart_media().unwrap();
    let mut viewer = cloud.view().unwrap();
    viewer.first_picture().unwrap();
    // Frozen, with its hooks: nobody says that anybody still looks.
    cloud.freeze_media();
    wait_idle(&cloud);
}

#[test]
fn a_bridge_that_dies_leaves_no_robot_streaming_and_comes_back_to_who_looks() {
    let Some(mut cloud) = cloud() else { return };
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let mut viewer = cloud.view().unwrap();
    viewer.first_picture().unwrap();
    cloud.kill_bridge();
    wait_idle(&cloud);
    // The player tries again, as players do.
    drop(viewer);
    cloud.restart_bridge().unwrap();
    // Since then a hook has been trying to tell that nobody is left; it gives up in the end.
    let told = |line: &String| line.contains("no viewer is left");
    cloud
        .bridge()
        .log()
        .try_wait(0, Duration::from_secs(10), told);
    let mut viewer = cloud.view().unwrap();
    viewer.first_picture().unwrap();
    // A bridge that is gone for a moment only interrupts nobody.
    let mark = cloud.observer.seen().mark();
    cloud.restart_bridge().unwrap();
    let renewed = cloud.observer.seen().try_wait(mark, DEADLINE, |seen| {
        seen.state()
            .is_some_and(|state| state.lease_until.is_some())
    });
    assert!(renewed.is_some(), "its lease is renewed");
    assert!(viewer.gets_media(DEADLINE).unwrap());
    assert!(
        cloud
            .observer
            .seen()
            .position(mark, |seen| seen.is(StreamState::Idle))
            .is_none()
    );
    drop(viewer);
    wait_idle(&cloud);
}
