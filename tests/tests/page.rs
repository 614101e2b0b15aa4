// SPDX-License-Identifier: MPL-2.0

//! The bridge's page in a real browser, with real servers and a real robot.

use std::time::Duration;

use anyhow::Result;
use droidrelay_testkit::{
    clients::browser::{Browser, Page, Screen},
    journal::DEADLINE,
    process::poll,
    servers::{
        cloud::{Cloud, Media, OTHER, ROBOT},
        relay::Kind,
    },
    testbed::TEST_PICTURE,
};
use droidrelay_wire::StreamState;

const SHOWS: &str = "document.getElementById('screen').classList.contains('shows')";
/// Types name and password and presses Enter.
fn sign_in(page: &Page, cloud: &Cloud) -> Result<()> {
    page.wait("!document.getElementById('sign-in').hidden")?;
    page.fill("#name", &cloud.viewer.user)?;
    page.fill("#password", &cloud.viewer.password)?;
    page.press("Enter")?;
    page.wait("!document.getElementById('stage').hidden")
}

/// The page says so of the chosen robot.
fn wait_word(page: &Page, word: &str) -> Result<()> {
    page.wait(&format!(
        "document.getElementById('state-word').textContent === '{word}'"
    ))
}

fn no_complaints(page: &Page) {
    assert_eq!(page.complaints(), Vec::<String>::new());
}

fn a_click_shows_the_robot_and_stop_ends_it(media: Media, way: &str) {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    let cloud = Cloud::start(media).unwrap();
    let ball = TEST_PICTURE.replace("videotestsrc", "videotestsrc pattern=ball");
    let _robot = cloud.robot(&ball).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open(&cloud.url(), Screen::DESKTOP).unwrap();
    sign_in(&page, &cloud).unwrap();
    wait_word(&page, "Ready").unwrap();
    let mark = cloud.observer.seen().mark();
    page.click("#go").unwrap();
    cloud.shows(&page.wait(SHOWS));
    wait_word(&page, "Live").unwrap();

    let before = page.middle_of("#video").unwrap();
    let moves = poll(DEADLINE, || {
        (page.middle_of("#video").ok()? != before).then_some(())
    });
    assert!(moves.is_some(), "the picture stands still");
    assert_eq!(page.text("#way").unwrap(), way);
    let start = page.text("#start-time").unwrap();
    let seconds: f64 = start.trim_end_matches(" s").parse().unwrap();
    println!("{way}: first picture {seconds} s after the click");
    assert!(seconds > 0.0 && seconds < DEADLINE.as_secs_f64(), "{start}");
    page.wait("/^320.×.180, [1-9]/.test(document.getElementById('picture').textContent)")
        .unwrap();
    if way == "WebRTC" {
        page.wait("/^[1-9].*bit\\/s$/.test(document.getElementById('bitrate').textContent)")
            .unwrap();
    }
    let name = &cloud.viewer.user;
    page.wait(&format!(
        "/{name}-[0-9a-f]{{6}} \\(you\\)/.test(document.getElementById('people').textContent)"
    ))
    .unwrap();

    page.click("#go").unwrap();
    // Who watches by HLS is not seen to leave: the media server forgets them after a while.
    let ready = "document.getElementById('state-word').textContent === 'Ready'";
    assert!(page.try_wait(ready, 3 * DEADLINE));
    page.wait(&format!(
        "!{SHOWS} && document.getElementById('people').textContent === 'nobody'"
    ))
    .unwrap();
    assert_eq!(page.text("#off-title").unwrap(), "The camera is off");
    assert_eq!(
        page.eval("document.getElementById('video').srcObject")
            .unwrap(),
        serde_json::Value::Null
    );
    cloud.observer.wait_state(mark, StreamState::Idle).unwrap();
    no_complaints(&page);
}

#[test]
fn a_click_shows_the_robot_by_webrtc_and_stop_ends_it() {
    a_click_shows_the_robot_and_stop_ends_it(Media::WebRtc, "WebRTC");
}

/// Its policy lets the page reach nothing else.
#[test]
fn a_click_shows_the_robot_through_the_bridges_own_address_and_sign_in() {
    a_click_shows_the_robot_and_stop_ends_it(Media::HandedOn, "WebRTC");
}

#[test]
fn a_click_shows_the_robot_by_hls_where_that_is_all_and_stop_ends_it() {
    a_click_shows_the_robot_and_stop_ends_it(Media::Hls, "HLS, some seconds late");
}

#[test]
fn a_click_shows_the_robot_by_hls_through_the_bridges_own_address_and_sign_in() {
    a_click_shows_the_robot_and_stop_ends_it(Media::HlsHandedOn, "HLS, some seconds late");
}

#[test]
fn a_link_shows_its_robot_to_who_has_no_name_and_no_other_robot() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    let cloud = Cloud::start(Media::HandedOn).unwrap();
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let token = cloud.share(60).unwrap();
    let browser = Browser::start().unwrap();
    let url = format!("{}#robot={ROBOT}&share={token}", cloud.url());
    let page = browser.open(&url, Screen::PHONE).unwrap();
    page.wait("document.getElementById('off-title').textContent === 'Shared with you'")
        .unwrap();
    let mark = cloud.observer.seen().mark();
    page.click("#go").unwrap();
    cloud.shows(&page.wait(SHOWS));
    assert_eq!(page.text("#way").unwrap(), "WebRTC");
    page.click("#go").unwrap();
    page.wait(&format!("!{SHOWS}")).unwrap();
    cloud.observer.wait_state(mark, StreamState::Idle).unwrap();
    no_complaints(&page);

    // Of another robot, or made up, it shows nothing.
    for hash in [
        format!("robot={OTHER}&share={token}"),
        format!("robot={ROBOT}&share=guessed"),
    ] {
        let page = browser
            .open(&format!("{}#{hash}", cloud.url()), Screen::PHONE)
            .unwrap();
        page.click("#go").unwrap();
        page.wait(
            "document.getElementById('status').textContent === 'This link is no longer good.'",
        )
        .unwrap();
    }
}

/// As a Firefox without its OpenH264 plugin.
#[test]
fn a_browser_that_plays_no_h264_says_so() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    let cloud = Cloud::start(Media::HandedOn).unwrap();
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open("about:blank", Screen::DESKTOP).unwrap();
    let script = "RTCRtpReceiver.getCapabilities = () => ({ codecs: [{ mimeType: 'video/VP8' }] }); \
                  HTMLMediaElement.prototype.canPlayType = () => ''";
    let before = serde_json::json!({ "source": script });
    page.call("Page.addScriptToEvaluateOnNewDocument", before)
        .unwrap();
    page.go(&cloud.url()).unwrap();
    sign_in(&page, &cloud).unwrap();
    wait_word(&page, "Ready").unwrap();
    page.click("#go").unwrap();
    page.wait("document.getElementById('status').textContent.includes('neither H.264 by WebRTC')")
        .unwrap();
    no_complaints(&page);
}

#[test]
fn a_viewer_may_have_a_name_that_means_something_to_javascript() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    let cloud = Cloud::start(Media::WebRtc).unwrap();
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open(&cloud.url(), Screen::DESKTOP).unwrap();
    sign_in(&page, &cloud).unwrap();
    wait_word(&page, "Ready").unwrap();
    for name in ["__proto__", "constructor"] {
        let start = format!("{{\"command\":\"start\",\"id\":\"{name}\"}}");
        cloud.observer.send(&start).unwrap();
        page.wait(&format!(
            "document.getElementById('people').textContent.includes('{name}')"
        ))
        .unwrap();
    }
    no_complaints(&page);
}

#[test]
fn a_wrong_password_is_told_and_kept_nowhere() {
    let cloud = Cloud::start(Media::None).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open(&cloud.url(), Screen::PHONE).unwrap();
    page.wait("document.activeElement?.id === 'name'").unwrap();
    page.fill("#name", &cloud.viewer.user).unwrap();
    page.fill("#password", "not the password").unwrap();
    page.click("#sign-in-form button").unwrap();
    page.wait("!document.getElementById('wrong').hidden")
        .unwrap();
    assert_eq!(page.text("#wrong").unwrap(), "Name or password is wrong.");
    let told = page.told().unwrap();
    assert!(
        told.iter().any(|(role, _)| role == "alert"),
        "a screen reader is told: {told:?}"
    );
    page.wait("document.activeElement.id === 'password'")
        .unwrap();
    assert_eq!(
        page.eval("sessionStorage.length + localStorage.length")
            .unwrap(),
        0
    );

    sign_in(&page, &cloud).unwrap();
    let stored = page
        .eval("JSON.stringify(localStorage) + document.cookie + location")
        .unwrap();
    assert_eq!(stored, format!("{{}}{}", cloud.url()));
    // Kept for this tab, until its user signs out.
    page.go(&cloud.url()).unwrap();
    page.wait("!document.getElementById('stage').hidden")
        .unwrap();
    page.click("#sign-out").unwrap();
    page.wait("!document.getElementById('sign-in').hidden")
        .unwrap();
    assert_eq!(page.eval("sessionStorage.length").unwrap(), 0);
    no_complaints(&page);
}

#[test]
fn a_robot_that_is_offline_is_waited_for() {
    let no_media = Kind::MediaMtx.notice_if_absent();
    let cloud = Cloud::start(if no_media { Media::None } else { Media::WebRtc }).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open(&cloud.url(), Screen::PHONE).unwrap();
    sign_in(&page, &cloud).unwrap();
    page.click(&format!("[data-robot={ROBOT}] button")).unwrap();
    wait_word(&page, "Offline").unwrap();
    assert_eq!(page.text("#off-title").unwrap(), "The robot is offline");
    if no_media {
        return;
    }
    page.click("#go").unwrap();
    page.wait("document.getElementById('off-title').textContent === 'Waiting for the robot'")
        .unwrap();
    let mut robot = cloud.robot(TEST_PICTURE).unwrap();
    cloud.shows(&page.wait(SHOWS));

    // Gone without a word, and back.
    robot.kill();
    wait_word(&page, "Offline").unwrap();
    page.wait(&format!("!{SHOWS}")).unwrap();
    drop(robot);
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    cloud.shows(&page.wait(SHOWS));
    no_complaints(&page);
}

#[test]
fn a_tab_that_crashes_leaves_no_robot_streaming() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    let cloud = Cloud::start(Media::WebRtc).unwrap();
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open(&cloud.url(), Screen::DESKTOP).unwrap();
    sign_in(&page, &cloud).unwrap();
    page.click("#go").unwrap();
    cloud.shows(&page.wait(SHOWS));
    let mark = cloud.observer.seen().mark();
    page.crash().unwrap();
    let idle = cloud
        .observer
        .seen()
        .try_wait(mark, 3 * DEADLINE, |seen| seen.is(StreamState::Idle));
    assert!(idle.is_some(), "{:?}", cloud.observer.seen().last());

    // Closed by a person, it says so.
    let page = browser.open(&cloud.url(), Screen::DESKTOP).unwrap();
    sign_in(&page, &cloud).unwrap();
    page.click("#go").unwrap();
    cloud.shows(&page.wait(SHOWS));
    let mark = cloud.observer.seen().mark();
    page.close().unwrap();
    let idle = cloud
        .observer
        .seen()
        .try_wait(mark, Duration::from_secs(15), |seen| {
            seen.is(StreamState::Idle)
        });
    assert!(idle.is_some(), "sooner than its lease ends");
}

#[test]
fn a_media_server_with_users_of_its_own_is_asked_with_their_password() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    let cloud = Cloud::start(Media::OwnUsers).unwrap();
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open(&cloud.url(), Screen::PHONE).unwrap();
    sign_in(&page, &cloud).unwrap();
    page.click("#go").unwrap();
    for password in ["guessed", &cloud.watcher.password] {
        cloud.shows(&page.wait("document.activeElement?.id === 'ask-name'"));
        page.fill("#ask-name", &cloud.watcher.user).unwrap();
        page.fill("#ask-password", password).unwrap();
        page.press("Enter").unwrap();
        page.wait("document.getElementById('ask').hidden").unwrap();
    }
    cloud.shows(&page.wait(SHOWS));
    no_complaints(&page);
}

#[test]
fn a_page_that_nobody_sees_lets_the_robot_sleep_and_goes_on_when_seen_again() {
    if Kind::MediaMtx.notice_if_absent() {
        return;
    }
    let cloud = Cloud::start(Media::WebRtc).unwrap();
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open(&cloud.url(), Screen::PHONE).unwrap();
    sign_in(&page, &cloud).unwrap();
    page.click("#go").unwrap();
    cloud.shows(&page.wait(SHOWS));
    // A browser without a screen has no other tab to go to: it is told so.
    let turn = |state: &str| {
        page.eval(&format!(
            "Object.defineProperty(document, 'visibilityState', {{ value: '{state}', configurable: true }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        ))
    };
    let mark = cloud.observer.seen().mark();
    turn("hidden").unwrap();
    let idle = cloud
        .observer
        .seen()
        .try_wait(mark, 2 * DEADLINE, |seen| seen.is(StreamState::Idle));
    assert!(idle.is_some(), "{:?}", cloud.observer.seen().last());
    assert_eq!(page.text("#off-title").unwrap(), "Paused");
    turn("visible").unwrap();
    cloud.shows(&page.wait(SHOWS));
    no_complaints(&page);
}

#[test]
fn the_keyboard_and_a_screen_reader_reach_everything() {
    let cloud = Cloud::start(Media::None).unwrap();
    let _robot = cloud.robot(TEST_PICTURE).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open(&cloud.url(), Screen::DESKTOP).unwrap();
    sign_in(&page, &cloud).unwrap();
    wait_word(&page, "Ready").unwrap();
    for (role, name) in page.told().unwrap() {
        let needs_name = [
            "button",
            "textbox",
            "link",
            "navigation",
            "article",
            "image",
        ];
        assert!(
            !needs_name.contains(&role.as_str()) || !name.is_empty(),
            "a {role} without a name"
        );
    }
    let focused = |what: &str| {
        page.eval(&format!("document.activeElement.{what}"))
            .unwrap()
    };
    let mark = cloud.observer.seen().mark();
    let reached = (0..12).any(|_| {
        page.press("Tab").unwrap();
        focused("id") == "go"
    });
    assert!(reached, "Tab leads to the button");
    assert!(
        page.eval("document.activeElement.matches(':focus-visible')")
            .unwrap()
            == true,
        "where the focus is can be seen"
    );
    page.press("Enter").unwrap();
    cloud
        .observer
        .wait_state(mark, StreamState::Starting)
        .unwrap();
    page.wait(
        "document.getElementById('status').textContent.startsWith('The bridge names no way')",
    )
    .unwrap();
    let status = page
        .told()
        .unwrap()
        .into_iter()
        .any(|(role, _)| role == "status");
    assert!(status, "what happens is told");
    assert_eq!(focused("id"), "go", "the focus stays");
    page.press("Enter").unwrap();
    wait_word(&page, "Ready").unwrap();
    no_complaints(&page);
}

/// Every text that is seen, with too little contrast (WCAG 2.2, 1.4.3) to what is behind it.
const PALE: &str = r"(() => {
    const rgba = text => text.match(/[\d.]+/g).map(Number);
    const light = ([r, g, b]) => [r, g, b].map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    const behind = element => {
        for (let e = element; e; e = e.parentElement) {
            if (e.id === 'screen') return [38, 50, 56];
            const [r, g, b, a = 1] = rgba(getComputedStyle(e).backgroundColor);
            if (a === 1) return [r, g, b];
        }
        return [255, 255, 255];
    };
    return [...document.querySelectorAll('body *')].filter(e => e.checkVisibility() && !e.closest('button:disabled')
        && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()) && e.tagName !== 'SCRIPT').map(e => {
        const [high, low] = [light(rgba(getComputedStyle(e).color)), light(behind(e))].sort((a, b) => b - a);
        return [(high + 0.05) / (low + 0.05), e.textContent.trim()];
    }).filter(([ratio]) => ratio < 4.5).map(([ratio, text]) => `${text}: ${ratio.toFixed(2)}`);
})()";

#[test]
fn every_screen_holds_the_page_and_every_text_can_be_read() {
    let cloud = Cloud::start(Media::None).unwrap();
    let browser = Browser::start().unwrap();
    let page = browser.open(&cloud.url(), Screen::PHONE).unwrap();
    let look = || {
        let small = Screen {
            width: 320,
            ..Screen::PHONE
        };
        for screen in [
            small,
            Screen::PHONE,
            Screen::PHONE.dark(),
            Screen::DESKTOP,
            Screen::DESKTOP.dark(),
        ] {
            page.set_screen(screen).unwrap();
            let fits = poll(DEADLINE, || {
                let width = page.eval("document.documentElement.scrollWidth").ok()?;
                (width == screen.width).then_some(())
            });
            assert!(fits.is_some(), "{screen:?}: wider than the screen");
            assert_eq!(
                page.eval(PALE).unwrap(),
                serde_json::json!([]),
                "{screen:?}"
            );
        }
    };
    page.wait("!document.getElementById('sign-in').hidden")
        .unwrap();
    look();
    sign_in(&page, &cloud).unwrap();
    look();
    page.click("#go").unwrap();
    look();
    no_complaints(&page);
}
