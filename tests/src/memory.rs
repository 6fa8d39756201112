//! How much memory processes held at most, sampled while they work. Anonymous memory only: pages of mapped files are the
//! system's to give and take.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;

/// Between two looks.
const EVERY: Duration = Duration::from_millis(50);

/// Peaks of `RssAnon`, by process id, in bytes. Sampling ends with the value.
#[derive(Debug)]
pub struct Sampler {
    peaks: Arc<Mutex<BTreeMap<u32, u64>>>,
    task: JoinHandle<()>,
}

impl Sampler {
    /// Begins to look at these processes. Must be called on a tokio runtime.
    #[must_use]
    pub fn start(pids: Vec<u32>) -> Self {
        let peaks = Arc::new(Mutex::new(BTreeMap::new()));
        let shared = Arc::clone(&peaks);
        let task = tokio::spawn(async move {
            let mut ticks = tokio::time::interval(EVERY);
            loop {
                ticks.tick().await;
                for pid in &pids {
                    let Some(now) = rss_anon(*pid) else { continue };
                    if let Ok(mut peaks) = shared.lock() {
                        let peak = peaks.entry(*pid).or_insert(0);
                        *peak = now.max(*peak);
                    }
                }
            }
        });
        Self { peaks, task }
    }

    /// The most that was seen of a process; 0 where the system does not tell.
    #[must_use]
    pub fn peak(&self, pid: u32) -> u64 {
        self.peaks.lock().ok().and_then(|peaks| peaks.get(&pid).copied()).unwrap_or(0)
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The anonymous memory that a process holds now, in bytes. Linux only.
#[must_use]
pub fn rss_anon(pid: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    parse_rss_anon(&status)
}

fn parse_rss_anon(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_found_and_its_unit_heeded() {
        assert_eq!(
            parse_rss_anon("VmRSS:\t 9 kB\nRssAnon:\t    1234 kB\nRssFile: 1 kB\n"),
            Some(1234 * 1024)
        );
        assert_eq!(parse_rss_anon("VmRSS: 9 kB\n"), None);
    }
}
