//! The counts that were committed: a line for each case, behind a line that says which tools they hold for.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// How the line of the tools begins.
const TOOLS: &str = "# ";

/// Instructions by case.
#[derive(Debug, Default)]
pub struct Counts {
    /// What they depend on besides the source: compilers, C library, valgrind.
    pub tools: String,
    /// Instructions of each case.
    pub cases: BTreeMap<String, u64>,
}

impl Counts {
    fn path() -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches/guard/counts")
    }

    /// Those that were committed.
    pub fn read() -> Result<Self, String> {
        let path = Self::path();
        let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut counts = Self::default();
        for line in text.lines() {
            if let Some(tools) = line.strip_prefix(TOOLS) {
                tools.clone_into(&mut counts.tools);
            } else {
                let (count, name) = line.trim_start().split_once(' ').ok_or("a line without a name")?;
                let count = count.parse().map_err(|_| format!("{count} is no number"))?;
                counts.cases.insert(name.to_owned(), count);
            }
        }
        Ok(counts)
    }

    /// Replaces them.
    pub fn write(&self) -> Result<PathBuf, String> {
        let path = Self::path();
        let lines: String = self.cases.iter().map(|(name, count)| format!("{count:>12} {name}\n")).collect();
        fs::write(&path, format!("{TOOLS}{}\n{lines}", self.tools))
            .map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(path)
    }
}
