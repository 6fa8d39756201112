//! Exit codes of every program, after `sysexits.h`, so that a supervisor can tell a mistake of the
//! operator (do not restart) from trouble that may pass (restart).

use std::process::ExitCode;

/// Why a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It did what was asked.
    Ok,
    /// The answer to a question asked by a verb is "no" (for example `health` of an unhealthy service).
    No,
    /// Command line or configuration are wrong; restarting does not help.
    Usage,
    /// Something needed is not there now: a port, a file, another service.
    Unavailable,
    /// A fault of the program itself.
    Internal,
}

impl Exit {
    /// The number the process ends with.
    pub fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::No => 1,
            Self::Usage => 64,
            Self::Unavailable => 69,
            Self::Internal => 70,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}
