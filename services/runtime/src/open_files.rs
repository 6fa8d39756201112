//! How many files the system lets this process have open. A connection is one of them.

/// Raises the limit as far as the system allows: shells set a low one for programs that can't deal with more. Returns the limit that
/// holds from now on.
#[cfg(unix)]
pub fn raise_limit() -> std::io::Result<u64> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// Here nothing limits them beforehand.
#[cfg(not(unix))]
pub fn raise_limit() -> std::io::Result<u64> {
    Ok(u64::MAX)
}
