//! What state a service is in, and why: named components, each ready, degraded or not ready with a
//! reason. gRPC health, `/healthz` and `/status` all say what is registered here.
//!
//! Invariant: the whole is as bad as its worst component; a draining service is not ready; a
//! component is listed from its registration until its guard is dropped.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

/// The longest reason kept, in bytes: reasons may quote what others sent.
pub const MAX_REASON_BYTES: usize = 256;

/// The name under which draining is reported.
const DRAINING: &str = "drain";

/// How a component, or the whole, is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", content = "reason", rename_all = "snake_case")]
pub enum State {
    /// It works.
    Ready,
    /// It works, but not as it should; calls are still served.
    Degraded(String),
    /// It does not work; calls should go elsewhere.
    NotReady(String),
}

impl State {
    /// Whether calls are served.
    pub fn serves(&self) -> bool {
        !matches!(self, Self::NotReady(_))
    }

    fn badness(&self) -> u8 {
        match self {
            Self::Ready => 0,
            Self::Degraded(_) => 1,
            Self::NotReady(_) => 2,
        }
    }

    fn reason(&self) -> Option<&str> {
        match self {
            Self::Ready => None,
            Self::Degraded(reason) | Self::NotReady(reason) => Some(reason),
        }
    }
}

/// Everything there is to say at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The whole, with the reasons of all components that are as bad as the worst.
    pub overall: State,
    /// Each component.
    pub components: BTreeMap<String, State>,
}

/// The registry. Clones are the same registry.
#[derive(Debug, Clone)]
pub struct Status {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    components: Mutex<BTreeMap<String, State>>,
    overall: watch::Sender<State>,
}

impl Default for Status {
    fn default() -> Self {
        Self::new()
    }
}

impl Status {
    /// A registry without components: ready.
    pub fn new() -> Self {
        let shared = Shared { components: Mutex::default(), overall: watch::Sender::new(State::Ready) };
        Self { shared: Arc::new(shared) }
    }

    /// Registers a component, not ready until it says otherwise. The guard unregisters it. A second
    /// registration of the same name takes the first one's place.
    pub fn component(&self, name: impl Into<String>) -> Component {
        let component = Component { name: name.into(), shared: Arc::clone(&self.shared) };
        component.not_ready("starting");
        component
    }

    /// From now on the service is not ready, because it is stopping. There is no way back.
    pub fn drain(&self) {
        self.shared.change(|components| {
            components.insert(DRAINING.into(), State::NotReady("the service is stopping".into()));
        });
    }

    /// The whole.
    pub fn overall(&self) -> State {
        self.shared.overall.borrow().clone()
    }

    /// The whole and its parts.
    pub fn report(&self) -> Report {
        let components = self.shared.components.lock().clone();
        Report { overall: overall(&components), components }
    }

    /// Follows the whole.
    pub fn subscribe(&self) -> watch::Receiver<State> {
        self.shared.overall.subscribe()
    }
}

impl Shared {
    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, State>)) {
        let mut components = self.components.lock();
        change(&mut components);
        let new = overall(&components);
        // Under the lock, so that the last change is also the last one told.
        self.overall.send_if_modified(|old| {
            let changed = *old != new;
            *old = new;
            changed
        });
    }
}

/// As bad as the worst, for the reasons of all that are as bad.
fn overall(components: &BTreeMap<String, State>) -> State {
    let worst = components.values().map(State::badness).max().unwrap_or_default();
    let reasons: Vec<String> = components
        .iter()
        .filter(|(_, state)| state.badness() == worst)
        .filter_map(|(name, state)| state.reason().map(|reason| format!("{name}: {reason}")))
        .collect();
    match worst {
        0 => State::Ready,
        1 => State::Degraded(reasons.join("; ")),
        _ => State::NotReady(reasons.join("; ")),
    }
}

/// A component's own line in the report; dropping it takes the line away.
#[derive(Debug)]
pub struct Component {
    name: String,
    shared: Arc<Shared>,
}

impl Component {
    /// It works.
    pub fn ready(&self) {
        self.set(State::Ready);
    }

    /// It works, but not as it should.
    pub fn degraded(&self, reason: impl Into<String>) {
        self.set(State::Degraded(bounded(reason.into())));
    }

    /// It does not work.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(State::NotReady(bounded(reason.into())));
    }

    fn set(&self, state: State) {
        self.shared.change(|components| {
            components.insert(self.name.clone(), state);
        });
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        // A component that dies in a panic must not leave a service that looks healthy.
        if std::thread::panicking() {
            self.set(State::NotReady("it ended by a fault of the program; see the log".into()));
        } else {
            self.shared.change(|components| {
                components.remove(&self.name);
            });
        }
    }
}

fn bounded(mut reason: String) -> String {
    if reason.len() > MAX_REASON_BYTES {
        let cut =
            (0..=MAX_REASON_BYTES - 3).rev().find(|at| reason.is_char_boundary(*at)).unwrap_or_default();
        reason.truncate(cut);
        reason.push('…');
    }
    reason
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_is_as_bad_as_its_worst_part_and_names_the_reasons() {
        let status = Status::new();
        assert_eq!(status.overall(), State::Ready);
        let store = status.component("store");
        let bridge = status.component("bridge");
        assert_eq!(status.overall(), State::NotReady("bridge: starting; store: starting".into()));
        store.ready();
        bridge.degraded("1 of 3 links");
        assert_eq!(status.overall(), State::Degraded("bridge: 1 of 3 links".into()));
        assert!(status.overall().serves());
        store.not_ready("disk full");
        assert_eq!(status.overall(), State::NotReady("store: disk full".into()));
        drop(store);
        bridge.ready();
        assert_eq!(status.overall(), State::Ready);
    }

    #[test]
    fn draining_is_final_and_followers_are_told_only_of_changes() {
        let status = Status::new();
        let part = status.component("part");
        part.ready();
        let mut follower = status.subscribe();
        follower.mark_unchanged();
        part.ready();
        assert!(!follower.has_changed().unwrap());
        status.drain();
        part.ready();
        assert!(follower.has_changed().unwrap());
        assert!(!follower.borrow_and_update().serves());
    }

    #[test]
    fn long_reasons_are_cut_at_a_character() {
        let status = Status::new();
        let part = status.component("part");
        part.degraded("ä".repeat(1000));
        let State::Degraded(reason) = &status.report().components["part"] else { panic!("not degraded") };
        assert!(reason.len() <= MAX_REASON_BYTES && reason.ends_with('…'));
    }

    #[test]
    fn a_component_that_panics_leaves_the_service_not_ready() {
        let status = Status::new();
        let part = status.component("part");
        part.ready();
        let died = std::thread::spawn(move || {
            let _part = part;
            panic!("on purpose");
        });
        assert!(died.join().is_err());
        assert!(!status.overall().serves());
    }

    #[test]
    fn a_report_is_readable_json() {
        let status = Status::new();
        let _part = status.component("part");
        let json = serde_json::to_string(&status.report()).unwrap();
        assert_eq!(
            json,
            r#"{"overall":{"state":"not_ready","reason":"part: starting"},"components":{"part":{"state":"not_ready","reason":"starting"}}}"#
        );
    }
}
