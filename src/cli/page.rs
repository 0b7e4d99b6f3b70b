//! The page of `bench dedup`: one file that needs nothing else, for a screen, a phone, and paper.

use super::text::{bytes, is_reordering};
use imgstore::ops::assess::{Assessment, Cell, DiskFigures};
use std::fmt::Write;

/// Colours of disks, for what others share with them; told apart in print and by most eyes (Okabe and Ito, 2008).
const COLOURS: [&str; 7] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b8a800"];
const UNIQUE: &str = "#444444";
const REPEATED: &str = "#999999";
const ZERO: &str = "#eeeeee";

const STYLE: &str = "body{font:16px/1.45 system-ui,sans-serif;margin:0 auto;max-width:60rem;padding:1rem;color:#222;\
background:#fff}h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem}table{border-collapse:collapse;width:100%}\
td,th{padding:.25rem .6rem .25rem 0;text-align:right;border-bottom:1px solid #ddd;vertical-align:bottom}\
td:first-child,th:first-child{text-align:left}.wide{overflow-x:auto}svg{width:100%;height:auto;display:block}\
.map svg{height:3.2rem}.key span{display:inline-block;margin-right:1rem;white-space:nowrap}\
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.35em;border:1px solid #0003}\
.own td{font-weight:600}figure{margin:1rem 0;break-inside:avoid}figcaption{color:#555;font-size:.9rem}\
@media print{body{font-size:11px;max-width:none;padding:0}*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}";

/// How every page begins.
pub const BEGIN: &str = "<!DOCTYPE html>\n<!-- imgstore bench dedup -->";

/// The page, well-formed XML as well as HTML.
pub fn page(names: &[String], assessment: &Assessment) -> String {
    let data: u64 = assessment.disks.iter().map(|disk| disk.data_bytes).sum();
    let own = assessment.layouts.iter().find(|layout| layout.is_own).map_or(0, |layout| layout.stored_bytes);
    let mut page = format!(
        "{BEGIN}\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><meta name=\"viewport\" \
         content=\"width=device-width, initial-scale=1\"/><title>What deduplication gives</title>\
         <style>{STYLE}</style></head><body>\n<h1>What deduplication gives on {} disks</h1>\n\
         <p>{} of data would take <strong>{}</strong> ({:.0} %), with deltas about <strong>{}</strong>.{}</p>\n",
        names.len(),
        bytes(data),
        bytes(own),
        own as f64 * 100.0 / data.max(1) as f64,
        bytes(assessment.delta_bytes),
        if assessment.sampled > 1 {
            format!(" Estimated from a sample: in the finest cut one chunk in {}.", assessment.sampled)
        } else {
            String::new()
        }
    );
    disks(&mut page, names, assessment);
    layouts(&mut page, names, assessment, data);
    levels(&mut page, assessment, data);
    page += "</body></html>\n";
    page
}

fn disks(page: &mut String, names: &[String], assessment: &Assessment) {
    *page += "<h2>Disks</h2>\n<div class=\"wide\"><table><tr><th>disk</th><th>size</th><th>data</th><th>adds</th>\
              <th>it alone has</th></tr>\n";
    for (name, disk) in names.iter().zip(&assessment.disks) {
        let [size, data, added, unique] =
            [disk.volume_bytes, disk.data_bytes, disk.added_bytes, disk.unique_bytes].map(bytes);
        let name = escaped(name);
        let _ = writeln!(
            page,
            "<tr><td>{name}</td><td>{size}</td><td>{data}</td><td>{added}</td><td>{unique}</td></tr>"
        );
    }
    *page += "</table></div>\n<p><em>Adds</em>: after the disks before it. <em>It alone has</em>: what would be freed \
              without it.</p>\n<h2>What is where</h2>\n<p class=\"key\">";
    let kinds = [(ZERO, "zero"), (UNIQUE, "nowhere else"), (REPEATED, "several times, here only")];
    for (colour, what) in kinds {
        let _ = write!(page, "<span><i style=\"background:{colour}\"></i>{what}</span> ");
    }
    for (number, name) in names.iter().enumerate() {
        let (colour, name) = (COLOURS[number % COLOURS.len()], escaped(name));
        let _ = write!(page, "<span><i style=\"background:{colour}\"></i>also on {name}</span> ");
    }
    *page += "</p>\n";
    for (name, disk) in names.iter().zip(&assessment.disks) {
        map(page, name, disk);
    }
}

/// A disk from its begin on the left to its end, each part as a column of shares.
fn map(page: &mut String, name: &str, disk: &DiskFigures) {
    let cells = disk.map.len().max(1);
    let (name, size) = (escaped(name), bytes(disk.volume_bytes));
    let _ = write!(
        page,
        "<figure class=\"map\"><svg viewBox=\"0 0 {cells} 100\" preserveAspectRatio=\"none\" role=\"img\" \
         aria-label=\"Map of {name}\"><rect width=\"{cells}\" height=\"100\" fill=\"{ZERO}\"/>"
    );
    for (at, cell) in disk.map.iter().enumerate() {
        let mut top = 100.0;
        for (colour, share) in shares(cell) {
            let height = share * 100.0;
            if height >= 0.05 {
                top -= height;
                let _ = write!(
                    page,
                    "<rect x=\"{at}\" y=\"{top:.1}\" width=\"1.02\" height=\"{height:.1}\" fill=\"{colour}\"/>"
                );
            }
        }
    }
    let _ = writeln!(page, "</svg><figcaption>{name}, {size}</figcaption></figure>");
}

fn shares(cell: &Cell) -> Vec<(&'static str, f64)> {
    let mut shares = vec![(UNIQUE, cell.unique), (REPEATED, cell.repeated)];
    shares.extend(cell.shared.iter().map(|(disk, share)| (COLOURS[disk % COLOURS.len()], *share)));
    shares
}

fn layouts(page: &mut String, names: &[String], assessment: &Assessment, data: u64) {
    *page += "<h2>Where chunks end</h2>\n<figure>";
    let largest = assessment.layouts.iter().map(|layout| layout.stored_bytes).max().unwrap_or(1).max(1);
    let height = assessment.layouts.len() * 34;
    let _ =
        write!(page, "<svg viewBox=\"0 0 800 {height}\" role=\"img\" aria-label=\"What each cut stores\">");
    for (row, layout) in assessment.layouts.iter().enumerate() {
        let top = row * 34;
        let mut left = 0.0;
        let name = escaped(&layout.name);
        let _ = write!(page, "<text x=\"0\" y=\"{}\" font-size=\"13\">{name}</text>", top + 11);
        for (disk, added) in layout.added_bytes.iter().enumerate() {
            let width = *added as f64 * 690.0 / largest as f64;
            let colour = COLOURS[disk % COLOURS.len()];
            let what = format!("{}: {}", escaped(&names[disk]), bytes(*added));
            let _ = write!(
                page,
                "<rect x=\"{left:.1}\" y=\"{}\" width=\"{width:.1}\" height=\"14\" fill=\"{colour}\"><title>{what}\
                 </title></rect>",
                top + 15
            );
            left += width;
        }
        let (left, top) = (left + 6.0, top + 27);
        let stored = bytes(layout.stored_bytes);
        let _ = write!(page, "<text x=\"{left:.1}\" y=\"{top}\" font-size=\"13\">{stored}</text>");
    }
    *page += "</svg><figcaption>Compressed at level 3, with the index; a colour for what each disk adds</figcaption>\
              </figure>\n<div class=\"wide\"><table><tr><th>cut</th><th>stored</th><th>of data</th><th>index</th>\
              <th>chunks</th><th>decoded for 4 KiB</th></tr>\n";
    for layout in &assessment.layouts {
        let class = if layout.is_own { " class=\"own\"" } else { "" };
        let [stored, index, read] = [layout.stored_bytes, layout.index_bytes, layout.read_bytes].map(bytes);
        let share = layout.stored_bytes as f64 * 100.0 / data.max(1) as f64;
        let (name, chunks) = (escaped(&layout.name), layout.chunks);
        let _ = writeln!(
            page,
            "<tr{class}><td>{name}</td><td>{stored}</td><td>{share:.1} %</td><td>{index}</td><td>{chunks}</td>\
             <td>{read}</td></tr>"
        );
    }
    *page += "</table></div>\n";
}

fn levels(page: &mut String, assessment: &Assessment, data: u64) {
    *page += "<h2>Levels</h2>\n<div class=\"wide\"><table><tr><th>zstd level</th><th>stored</th><th>of data</th>\
              <th>speed, one thread</th></tr>\n";
    for level in &assessment.levels {
        let [stored, speed] = [level.stored_bytes, level.bytes_per_second].map(bytes);
        let share = level.stored_bytes as f64 * 100.0 / data.max(1) as f64;
        let level = level.level;
        let _ = writeln!(
            page,
            "<tr><td>{level}</td><td>{stored}</td><td>{share:.1} %</td><td>{speed}/s</td></tr>"
        );
    }
    *page += "</table></div>\n";
}

/// Text that stands in a page.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe += "&amp;",
            '<' => safe += "&lt;",
            '>' => safe += "&gt;",
            '"' => safe += "&quot;",
            // Not allowed in XML at all, or what turns the text around it.
            c if c.is_control() || is_reordering(c) || matches!(c, '\u{fffe}' | '\u{ffff}') => {
                safe.push('\u{fffd}')
            }
            c => safe.push(c),
        }
    }
    safe
}
