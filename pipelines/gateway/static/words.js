// The page's own words. What people said and the notes are never translated here.

const WORDS = {
  en: {
    skip: "Skip to the meeting", streams: "Meetings", filter: "Find a meeting", choose: "Choose a meeting.",
    back: "All meetings", catchUp: "Catch me up", export: "Export", notes: "Notes", transcript: "Transcript",
    ask: "Ask", askLabel: "Your question", askHint: "Ask about this meeting", send: "Ask", language: "Language",
    original: "Original", older: "Earlier parts are no longer held here.", newest: "Newest",
    login: "This gateway wants a token", token: "Token", enter: "Enter", none: "No meeting yet.",
    noMatch: "No meeting matches.", noNotes: "No notes yet. They come as soon as enough was said.",
    decision: "Decisions", action_item: "Action items", open_question: "Open questions", topic: "Topics",
    open: "open", done: "done", superseded: "replaced", withdrawn: "withdrawn", owner: "Owner", due: "Due",
    byPerson: "by a person", live: "Live", ended: "Ended", connecting: "Connecting…", connected: "Connected",
    lost: "Connection lost. Trying again…", starting: "The gateway is still reading. Trying again…",
    behind: "The notes are behind: {n} parts of the transcript since {time} are not in them yet.",
    offline: "No connection. What you see may be old.", gone: "This meeting was forgotten.",
    changedOne: "1 note changed since you looked", changed: "{n} notes changed since you looked",
    seen: "Mark as read", onlyChanged: "Show these", all: "Show all", new: "new", jump: "Show in the transcript",
    corrected: "corrected", rate: "{n} tokens/s", accepted: "{n} % of drafts accepted", now: "just now",
    ago: "{t} ago", s: "{n} s", min: "{n} min", h: "{n} h", d: "{n} d", revision: "Revision {r}",
    more: "Change this note", correct: "Correct", markDone: "Mark as done", reopen: "Open again",
    withdraw: "Withdraw", save: "Save", cancel: "Cancel", text: "Text", sent: "Sent, waiting for the notes…",
    notSent: "Could not be sent: {why}", waiting: "Waiting for the answer…", refused: "Not found in the meeting",
    covers: "as of {time}", you: "You asked", catchUpAsked: "Catch me up", uncovered: "{n} not in the notes yet",
    answerTo: "Answer", evidence: "Evidence", unknown: "Unknown speaker",
  },
  de: {
    skip: "Zum Gespräch springen", streams: "Gespräche", filter: "Gespräch suchen", choose: "Wählen Sie ein Gespräch.",
    back: "Alle Gespräche", catchUp: "Was war bisher?", export: "Ausgeben", notes: "Notizen", transcript: "Mitschrift",
    ask: "Fragen", askLabel: "Ihre Frage", askHint: "Frage zu diesem Gespräch", send: "Fragen", language: "Sprache",
    original: "Original", older: "Frühere Teile sind hier nicht mehr vorhanden.", newest: "Neuestes",
    login: "Hier wird ein Token verlangt", token: "Token", enter: "Weiter", none: "Noch kein Gespräch.",
    noMatch: "Kein Gespräch passt.", noNotes: "Noch keine Notizen. Sie kommen, sobald genug gesagt ist.",
    decision: "Beschlüsse", action_item: "Aufgaben", open_question: "Offene Fragen", topic: "Themen",
    open: "offen", done: "erledigt", superseded: "ersetzt", withdrawn: "zurückgezogen", owner: "Wer", due: "Bis",
    byPerson: "von einem Menschen", live: "Läuft", ended: "Beendet", connecting: "Verbinde …", connected: "Verbunden",
    lost: "Verbindung verloren. Neuer Versuch …", starting: "Es wird noch gelesen. Neuer Versuch …",
    behind: "Die Notizen sind im Rückstand: {n} Teile der Mitschrift seit {time} fehlen noch.",
    offline: "Keine Verbindung. Was Sie sehen, kann alt sein.", gone: "Dieses Gespräch wurde gelöscht.",
    changedOne: "1 Notiz ist neu, seit Sie hier waren", changed: "{n} Notizen sind neu, seit Sie hier waren",
    seen: "Gelesen", onlyChanged: "Nur diese", all: "Alle", new: "neu", jump: "In der Mitschrift zeigen",
    corrected: "berichtigt", rate: "{n} Token/s", accepted: "{n} % der Entwürfe übernommen", now: "gerade eben",
    ago: "vor {t}", s: "{n} s", min: "{n} min", h: "{n} h", d: "{n} d", revision: "Fassung {r}",
    more: "Diese Notiz ändern", correct: "Berichtigen", markDone: "Erledigt", reopen: "Wieder öffnen",
    withdraw: "Zurückziehen", save: "Speichern", cancel: "Abbrechen", text: "Text", sent: "Gesendet, warte auf die Notizen …",
    notSent: "Nicht gesendet: {why}", waiting: "Warte auf die Antwort …", refused: "Steht nicht im Gespräch",
    covers: "Stand {time}", you: "Ihre Frage", catchUpAsked: "Was war bisher?", uncovered: "{n} noch nicht in den Notizen",
    answerTo: "Antwort", evidence: "Belege", unknown: "Unbekannt",
  },
  ar: {
    skip: "انتقل إلى الاجتماع", streams: "الاجتماعات", filter: "ابحث عن اجتماع", choose: "اختر اجتماعًا.",
    back: "كل الاجتماعات", catchUp: "لخّص لي ما فات", export: "تصدير", notes: "الملاحظات", transcript: "نص الاجتماع",
    ask: "اسأل", askLabel: "سؤالك", askHint: "اسأل عن هذا الاجتماع", send: "اسأل", language: "اللغة",
    original: "الأصل", older: "الأجزاء الأقدم لم تعد محفوظة هنا.", newest: "الأحدث",
    login: "يلزم رمز دخول", token: "الرمز", enter: "دخول", none: "لا توجد اجتماعات بعد.",
    noMatch: "لا يوجد اجتماع مطابق.", noNotes: "لا ملاحظات بعد. ستظهر حين يُقال ما يكفي.",
    decision: "القرارات", action_item: "المهام", open_question: "أسئلة مفتوحة", topic: "المواضيع",
    open: "مفتوح", done: "أُنجز", superseded: "استُبدل", withdrawn: "سُحب", owner: "المسؤول", due: "الموعد",
    byPerson: "بيد شخص", live: "مباشر", ended: "انتهى", connecting: "جارٍ الاتصال…", connected: "متصل",
    lost: "انقطع الاتصال. جارٍ إعادة المحاولة…", starting: "ما زالت القراءة جارية. جارٍ إعادة المحاولة…",
    behind: "الملاحظات متأخرة: {n} من مقاطع النص منذ {time} ليست فيها بعد.",
    offline: "لا يوجد اتصال. قد يكون ما تراه قديمًا.", gone: "حُذف هذا الاجتماع.",
    changedOne: "تغيّرت ملاحظة واحدة منذ زيارتك الأخيرة", changed: "تغيّرت {n} ملاحظات منذ زيارتك الأخيرة",
    seen: "تمت القراءة", onlyChanged: "اعرضها فقط", all: "اعرض الكل", new: "جديد", jump: "اعرض في نص الاجتماع",
    corrected: "صُحّح", rate: "{n} رمز/ث", accepted: "قُبل {n}٪ من المسودات", now: "الآن",
    ago: "منذ {t}", s: "{n} ث", min: "{n} د", h: "{n} س", d: "{n} يوم", revision: "النسخة {r}",
    more: "غيّر هذه الملاحظة", correct: "صحّح", markDone: "أُنجزت", reopen: "أعد فتحها",
    withdraw: "اسحب", save: "احفظ", cancel: "ألغِ", text: "النص", sent: "أُرسل، بانتظار الملاحظات…",
    notSent: "تعذّر الإرسال: {why}", waiting: "بانتظار الجواب…", refused: "غير موجود في الاجتماع",
    covers: "حتى {time}", you: "سؤالك", catchUpAsked: "لخّص لي ما فات", uncovered: "{n} ليست في الملاحظات بعد",
    answerTo: "الجواب", evidence: "الشواهد", unknown: "متحدث غير معروف",
  },
};

const RIGHT_TO_LEFT = ["ar", "fa", "he", "ur"];
const wanted = [new URLSearchParams(location.search).get("lang"), ...navigator.languages];
export const language = wanted.map((tag) => (tag ?? "").split("-")[0]).find((code) => code in WORDS) ?? "en";
export const direction = RIGHT_TO_LEFT.includes(language) ? "rtl" : "ltr";

const numbers = new Intl.NumberFormat(language, { maximumFractionDigits: 1 });

/** The word of that name, with {placeholders} filled; numbers as the language writes them. */
export function word(name, values = {}) {
  const text = WORDS[language][name] ?? WORDS.en[name] ?? name;
  return text.replace(/\{(\w+)\}/g, (_, key) => {
    const value = values[key];
    return typeof value === "number" ? numbers.format(value) : String(value ?? "");
  });
}

/** How long ago, in words. */
export function ago(ms) {
  const seconds = Math.max(0, Math.round((Date.now() - ms) / 1000));
  if (seconds < 10) return word("now");
  const [unit, n] = seconds < 90 ? ["s", seconds] : seconds < 5400 ? ["min", Math.round(seconds / 60)]
    : seconds < 129600 ? ["h", Math.round(seconds / 3600)] : ["d", Math.round(seconds / 86400)];
  return word("ago", { t: word(unit, { n }) });
}

/** Milliseconds from the start of the meeting as a clock. */
export function clock(ms) {
  if (ms === null || ms === undefined) return "";
  const s = Math.max(0, Math.floor(ms / 1000));
  const two = (n) => String(n).padStart(2, "0");
  const text = s >= 3600 ? `${Math.floor(s / 3600)}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)}` : `${two(Math.floor(s / 60))}:${two(s % 60)}`;
  return language === "ar" ? text.replace(/\d/g, (d) => numbers.format(Number(d))) : text;
}

/** The name of a language in the page's language. */
export function nameOf(tag) {
  try {
    return new Intl.DisplayNames([language], { type: "language" }).of(tag) ?? tag;
  } catch {
    return tag;
  }
}
