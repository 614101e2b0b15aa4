// SPDX-License-Identifier: MPL-2.0

//! A real browser without a screen: Debian's chromium-headless-shell, told what to do by the
//! Chrome DevTools Protocol over two pipes.

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write},
    os::{
        fd::{AsRawFd, RawFd},
        unix::process::CommandExt,
    },
    path::Path,
    process::{Command, Stdio},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    journal::{DEADLINE, Journal},
    process::{Process, poll, program_of},
};

/// Where the browser reads commands and writes answers (`--remote-debugging-pipe`).
const COMMANDS: RawFd = 3;
const ANSWERS: RawFd = 4;

pub struct Browser {
    process: Process,
    commands: Mutex<PipeWriter>,
    /// Answers and events, as they came.
    messages: Journal<Value>,
    next: AtomicU64,
    _profile: TempDir,
}

/// How a page is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    pub width: u32,
    pub height: u32,
    pub scale: u32,
    pub mobile: bool,
    pub dark: bool,
}

impl Screen {
    pub const DESKTOP: Screen = Screen {
        width: 1180,
        height: 800,
        scale: 1,
        mobile: false,
        dark: false,
    };
    pub const PHONE: Screen = Screen {
        width: 390,
        height: 800,
        scale: 2,
        mobile: true,
        dark: false,
    };

    pub fn dark(self) -> Self {
        Screen { dark: true, ..self }
    }
}

impl Browser {
    /// One that takes every certificate: those of the tests are their own.
    pub fn start() -> Result<Self> {
        Self::trusting(None)
    }

    /// As a person's: it takes the certificates of the authorities that it knows, and of `authority`,
    /// which is imported as the kit's documents say.
    pub fn strict(authority: Option<&Path>) -> Result<Self> {
        Self::trusting(Some(authority))
    }

    fn trusting(authorities: Option<Option<&Path>>) -> Result<Self> {
        let profile = tempfile::Builder::new().prefix("browser-").tempdir()?;
        let (theirs_in, commands) = io::pipe()?;
        let (answers, theirs_out) = io::pipe()?;
        let mut command = Command::new(program_of(
            "chromium-headless-shell",
            "chromium-headless-shell",
        )?);
        command
            .args(
                "--remote-debugging-pipe --no-first-run --disable-gpu --hide-scrollbars".split(' '),
            )
            // Chromium refuses to run as root with it; what it loads here is our own.
            .arg("--no-sandbox")
            // The tests' own networks.
            .arg("--allow-loopback-in-peer-connection")
            .arg(format!("--user-data-dir={}", profile.path().display()));
        match authorities {
            None => {
                command.arg("--ignore-certificate-errors");
            }
            Some(authority) => {
                command.env("HOME", profile.path());
                authority.map_or(Ok(()), |file| import(profile.path(), file))?;
            }
        }
        let (from, to) = (theirs_in.as_raw_fd(), theirs_out.as_raw_fd());
        // SAFETY: fcntl, dup2 are async-signal-safe; the descriptors live until the spawn is done.
        unsafe {
            command.pre_exec(move || {
                // Out of the way first: either may itself stand where the other must go.
                let from = checked(libc::fcntl(from, libc::F_DUPFD_CLOEXEC, 10))?;
                let to = checked(libc::fcntl(to, libc::F_DUPFD_CLOEXEC, 10))?;
                checked(libc::dup2(from, COMMANDS))?;
                checked(libc::dup2(to, ANSWERS))?;
                Ok(())
            });
        }
        let process = Process::spawn("chromium-headless-shell", &mut command)?;
        drop((theirs_in, theirs_out));
        let messages = Journal::default();
        listen(answers, messages.clone());
        Ok(Browser {
            process,
            commands: Mutex::new(commands),
            messages,
            next: AtomicU64::new(1),
            _profile: profile,
        })
    }

    /// A page of its own, which shares nothing with others, showing `url`.
    pub fn open(&self, url: &str, screen: Screen) -> Result<Page<'_>> {
        let context = self.call(None, "Target.createBrowserContext", json!({}))?;
        let target = self.call(
            None,
            "Target.createTarget",
            json!({ "url": "about:blank", "browserContextId": context["browserContextId"] }),
        )?;
        let attached = self.call(
            None,
            "Target.attachToTarget",
            json!({ "targetId": target["targetId"], "flatten": true }),
        )?;
        let session = attached["sessionId"].as_str().context("no session")?;
        let page = Page {
            browser: self,
            session: session.to_owned(),
            target: target["targetId"].clone(),
            mark: self.messages.mark(),
        };
        for domain in ["Page", "Runtime", "Log", "Accessibility"] {
            page.call(&format!("{domain}.enable"), json!({}))?;
        }
        page.set_screen(screen)?;
        page.go(url)?;
        Ok(page)
    }

    fn call(&self, session: Option<&str>, method: &str, params: Value) -> Result<Value> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let mut message = json!({ "id": id, "method": method, "params": params });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        let mark = self.messages.mark();
        {
            let mut commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner);
            commands.write_all(format!("{message}\0").as_bytes())?;
        }
        let (_, answer) = self
            .messages
            .wait(mark, method, |message| message["id"] == id)
            .with_context(|| self.process.text())?;
        match answer.get("error") {
            Some(error) => bail!("{method}: {error}"),
            None => Ok(answer["result"].clone()),
        }
    }
}

/// Makes the store of authorities that Chromium reads in this home, with this one in it.
fn import(home: &Path, authority: &Path) -> Result<()> {
    let store = home.join(".pki/nssdb");
    fs::create_dir_all(&store)?;
    let no_password = home.join("no-password");
    fs::write(&no_password, "\n")?;
    let authority = authority.to_str().context("a path that is no text")?;
    let add = ["-A", "-t", "C,,", "-n", "server", "-i", authority];
    for words in [&["-N"][..], &add] {
        let mut command = Command::new(program_of("certutil", "libnss3-tools")?);
        command.arg("-d").arg(format!("sql:{}", store.display()));
        command.arg("-f").arg(&no_password).args(words);
        let done = command.stdin(Stdio::null()).output()?;
        ensure!(
            done.status.success(),
            "{authority}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(())
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn listen(answers: PipeReader, messages: Journal<Value>) {
    thread::spawn(move || {
        for message in BufReader::new(answers).split(0) {
            let Ok(message) = message else { break };
            if let Ok(message) = serde_json::from_slice(&message) {
                messages.push(message);
            }
        }
    });
}

/// One page in its tab.
pub struct Page<'a> {
    browser: &'a Browser,
    session: String,
    target: Value,
    mark: usize,
}

impl Page<'_> {
    pub fn call(&self, method: &str, params: Value) -> Result<Value> {
        self.browser.call(Some(&self.session), method, params)
    }

    pub fn set_screen(&self, screen: Screen) -> Result<()> {
        let metrics = json!({
            "width": screen.width,
            "height": screen.height,
            "deviceScaleFactor": screen.scale,
            "mobile": screen.mobile,
        });
        self.call("Emulation.setDeviceMetricsOverride", metrics)?;
        let scheme = if screen.dark { "dark" } else { "light" };
        let features = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", features)?;
        Ok(())
    }

    /// Goes to `url`; back when it is loaded.
    pub fn go(&self, url: &str) -> Result<()> {
        let mark = self.browser.messages.mark();
        let answer = self.call("Page.navigate", json!({ "url": url }))?;
        ensure!(
            answer.get("errorText").is_none(),
            "{url}: {}",
            answer["errorText"]
        );
        self.browser.messages.wait(mark, url, |message| {
            message["method"] == "Page.loadEventFired" && message["sessionId"] == *self.session
        })?;
        Ok(())
    }

    /// What the JavaScript `expression` gives, promises awaited.
    pub fn eval(&self, expression: &str) -> Result<Value> {
        let params =
            json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let answer = self.call("Runtime.evaluate", params)?;
        if let Some(exception) = answer.get("exceptionDetails") {
            bail!("{expression}: {exception}");
        }
        Ok(answer["result"]["value"].clone())
    }

    /// Asks until `expression` is true, for at most `patience`.
    pub fn try_wait(&self, expression: &str, patience: Duration) -> bool {
        poll(patience, || {
            (self.eval(expression).ok()? == true).then_some(())
        })
        .is_some()
    }

    /// As [`Page::try_wait`]; the error shows what the page says instead.
    pub fn wait(&self, expression: &str) -> Result<()> {
        ensure!(
            self.try_wait(expression, DEADLINE),
            "{expression}: not within {} s; the page says: {}\n{:?}",
            DEADLINE.as_secs(),
            self.eval("document.body.innerText")?,
            self.complaints()
        );
        Ok(())
    }

    /// Text of the visible element `selector`.
    pub fn text(&self, selector: &str) -> Result<String> {
        let text = self.eval(&format!("document.querySelector('{selector}').innerText"))?;
        Ok(text.as_str().unwrap_or_default().to_owned())
    }

    /// Clicks with the mouse at the middle of `selector`.
    pub fn click(&self, selector: &str) -> Result<()> {
        let at = self.eval(&format!(
            "(() => {{ const e = document.querySelector('{selector}'); e.scrollIntoView({{ block: 'nearest' }}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        ))?;
        for kind in ["mousePressed", "mouseReleased"] {
            let event =
                json!({ "type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event)?;
        }
        Ok(())
    }

    /// Types `text` into `selector`, in place of what stands there.
    pub fn fill(&self, selector: &str, text: &str) -> Result<()> {
        self.eval(&format!(
            "document.querySelector('{selector}').focus(); document.querySelector('{selector}').select()"
        ))?;
        self.call("Input.insertText", json!({ "text": text }))?;
        Ok(())
    }

    /// Presses a key: `Tab`, `Enter`.
    pub fn press(&self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, None),
            "Enter" => (13, Some("\r")),
            _ => bail!("no such key here: {key}"),
        };
        let mut event =
            json!({ "type": "rawKeyDown", "key": key, "code": key, "windowsVirtualKeyCode": code });
        if let Some(text) = text {
            event["type"] = "keyDown".into();
            event["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", event.clone())?;
        event["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", event)?;
        Ok(())
    }

    /// Every element that a screen reader tells: its role and its name.
    pub fn told(&self) -> Result<Vec<(String, String)>> {
        let tree = self.call("Accessibility.getFullAXTree", json!({}))?;
        let nodes = tree["nodes"].as_array().context("no nodes")?;
        let text = |value: &Value| value["value"].as_str().unwrap_or_default().to_owned();
        let told = nodes.iter().filter(|node| node["ignored"] == false);
        Ok(told
            .map(|node| (text(&node["role"]), text(&node["name"])))
            .collect())
    }

    /// What is seen in the middle of `selector`: equal where every pixel is.
    pub fn middle_of(&self, selector: &str) -> Result<String> {
        let clip = self.eval(&format!(
            "(() => {{ const r = document.querySelector('{selector}').getBoundingClientRect(); \
             return {{ x: r.x + r.width / 4, y: r.y + r.height / 4, width: r.width / 2, height: r.height / 2, scale: 1 }}; }})()"
        ))?;
        let options = json!({ "format": "png", "clip": clip });
        let shot = self.call("Page.captureScreenshot", options)?;
        Ok(shot["data"].as_str().context("no picture")?.to_owned())
    }

    /// Writes what is seen as PNG.
    pub fn picture(&self, path: &Path) -> Result<()> {
        let shot = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let png = STANDARD.decode(shot["data"].as_str().context("no picture")?)?;
        File::create(path)?.write_all(&png)?;
        Ok(())
    }

    /// Exceptions and what the browser holds against the page, such as its content policy; not
    /// requests that were answered with an error, which the browser logs too.
    pub fn complaints(&self) -> Vec<String> {
        let messages = self.browser.messages.since(self.mark);
        let mine = messages
            .iter()
            .filter(|message| message["sessionId"] == *self.session);
        mine.filter_map(|message| {
            let params = &message["params"];
            match message["method"].as_str()? {
                "Runtime.exceptionThrown" => Some(params["exceptionDetails"].to_string()),
                "Log.entryAdded"
                    if params["entry"]["level"] == "error"
                        && params["entry"]["source"] != "network" =>
                {
                    Some(params["entry"].to_string())
                }
                _ => None,
            }
        })
        .collect()
    }

    /// Closes the tab at once, as a crash would: the page is told nothing.
    pub fn crash(self) -> Result<()> {
        // The answer does not come from a page that is gone.
        let id = self.browser.next.fetch_add(1, Ordering::Relaxed);
        let message = json!({ "id": id, "method": "Page.crash", "sessionId": self.session });
        let mut commands = self
            .browser
            .commands
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        commands.write_all(format!("{message}\0").as_bytes())?;
        Ok(())
    }

    /// Closes the tab as a person does.
    pub fn close(self) -> Result<()> {
        let close = json!({ "targetId": self.target });
        self.browser.call(None, "Target.closeTarget", close)?;
        Ok(())
    }
}
