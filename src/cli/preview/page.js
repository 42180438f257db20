'use strict';
// The fragment of the URL is /locale/email/variant, and /look where the brand is not shown as it is, so that an email can be
// bookmarked and shared. Content of emails is inserted as text, or into a frame that runs no scripts.
const by = (id) => document.getElementById(id);
const OWN = 'own';
const SUBJECT_LENGTH_MAX = 60;
let list = { emails: [], locales: [], looks: [], missing: {}, outdated: {}, problems: [], warnings: [] };
let revision = 0;

const made = (tag, text = '', attributes = {}) => {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};

const answerOf = async (path, options) => {
  const answer = await fetch(path, options);
  const isJson = (answer.headers.get('content-type') || '').startsWith('application/json');
  if (!isJson) throw new Error(await answer.text());
  return answer.json();
};

const decoded = (text) => {
  try { return decodeURIComponent(text); } catch { return text; }
};
const chosen = () => {
  const [, locale, email, variant, look] = location.hash.split('/').map(decoded);
  return { locale, email, variant, look };
};
const addressOf = ({ locale, email, variant }) => [locale, email, variant].map(encodeURIComponent).join('/');
const lookOf = ({ look }) => (look && look !== OWN ? look : '');
const hashOf = (choice) => `#/${addressOf(choice)}${lookOf(choice) && `/${encodeURIComponent(lookOf(choice))}`}`;
const pathOf = (choice, part = '') =>
  `/emails/${addressOf(choice)}${part}${lookOf(choice) && `?look=${encodeURIComponent(lookOf(choice))}`}`;

// The nearest thing to what the address says that there is.
const settle = () => {
  const wanted = chosen();
  const email = list.emails.find((email) => email.name === wanted.email) || list.emails[0];
  const variant = (email.variants.find((variant) => variant.name === wanted.variant) || email.variants[0]).name;
  const own = (navigator.language || '').split('-')[0];
  const locale = [wanted.locale, list.locale, navigator.language, list.locales.filter((tag) => tag.split('-')[0] === own).pop()]
    .find((tag) => list.locales.includes(tag)) || list.locales[0];
  const look = list.looks.some((look) => look.name === wanted.look) ? wanted.look : OWN;
  const choice = { locale, email: email.name, variant, look };
  if (hashOf(choice) !== location.hash) history.replaceState(null, '', hashOf(choice));
  return choice;
};

const options = (select, entries, value) => {
  select.replaceChildren(...entries.map(([name, words]) => {
    const option = made('option', words, { value: name });
    option.selected = name === value;
    return option;
  }));
};

const showList = (choice) => {
  const names = new Intl.DisplayNames(['en'], { type: 'language', fallback: 'code' });
  options(by('locale'), list.locales.map((tag) => [tag, `${names.of(tag)} (${tag})`]), choice.locale);
  options(by('look'), list.looks.map(({ name, words }) => [name, words]), choice.look);
  const missing = list.missing[choice.locale] || [];
  const outdated = list.outdated[choice.locale] || [];
  const wanted = by('filter').value.toLowerCase().split(/\s+/).filter(Boolean);
  const entries = [];
  let template = '';
  for (const email of list.emails) {
    const matching = email.variants.filter((variant) => {
      const words = `${email.name} ${email.template} ${email.recipient} ${variant.name} ${variant.words}`.toLowerCase();
      return wanted.every((word) => words.includes(word));
    });
    if (matching.length === 0) continue;
    if (email.template !== template) entries.push(made('h2', email.template));
    template = email.template;
    const isMissing = missing.includes(email.name);
    const heading = made('h3', email.recipient);
    if (isMissing) heading.append(made('span', 'not written', { class: 'mark' }));
    else if (outdated.includes(email.name)) heading.append(made('span', 'mistake', { class: 'mark bad' }));
    entries.push(heading);
    const variants = made('ul');
    for (const variant of matching) {
      const item = { ...choice, email: email.name, variant: variant.name };
      const link = made('a', variant.words, { href: hashOf(item) });
      link.classList.toggle('absent', isMissing);
      if (item.email === choice.email && item.variant === choice.variant) link.setAttribute('aria-current', 'page');
      const entry = made('li');
      entry.append(link);
      variants.append(entry);
    }
    entries.push(variants);
  }
  by('none').hidden = entries.length > 0;
  const nav = document.querySelector('nav');
  const { scrollTop } = nav;
  const focused = by('list').contains(document.activeElement) && document.activeElement.getAttribute('href');
  by('list').replaceChildren(...entries);
  nav.scrollTop = scrollTop;
  if (focused) [...nav.querySelectorAll('a')].find((link) => link.getAttribute('href') === focused)?.focus();
  nav.querySelector('[aria-current]')?.scrollIntoView({ block: 'nearest' });
};

// Those about the shown email come first.
const showProblems = (choice) => {
  const concerns = ({ file }) => (file.endsWith(`/${choice.email}.md`) ? 1 : 0);
  const fill = (section, problems, heading) => {
    section.hidden = problems.length === 0;
    section.querySelector('.heading').textContent = heading;
    const sorted = [...problems].sort((a, b) => concerns(b) - concerns(a));
    section.querySelector('ul').replaceChildren(...sorted.map(({ file, line, message }) => {
      const item = made('li');
      item.append(made('code', line ? `${file}:${line}` : file), made('span', `: ${message}`));
      return item;
    }));
  };
  const { problems, warnings } = list;
  fill(by('problems'), problems, problems.length === 1 ? 'A problem' : `${problems.length} problems`);
  fill(by('warnings'), warnings, warnings.length === 1 ? 'A warning' : `${warnings.length} warnings`);
};

const fit = (frame) => {
  const { documentElement } = frame.contentDocument;
  frame.style.height = '0';
  frame.style.height = `${Math.max(200, documentElement.scrollHeight)}px`;
};

const showFrames = (choice) => {
  const dark = by('dark').checked;
  const frames = by('frames');
  frames.classList.toggle('dark', dark);
  const path = pathOf(choice, `/${dark ? 'dark' : 'light'}.html`);
  const source = `${path}${path.includes('?') ? '&' : '?'}${revision}`;
  const widths = document.querySelector('[name=width]:checked').value.split(' ');
  const now = [...frames.children].map((figure) => figure.dataset.width);
  if (now.join() !== widths.join()) {
    frames.replaceChildren(...widths.map((width) => {
      const figure = made('figure', '', { class: `w${width}`, 'data-width': width });
      // It can be wider than the page, so the keyboard must be able to scroll it.
      const label = `HTML, ${width} pixels wide`;
      const box = made('div', '', { class: 'window', role: 'group', tabindex: 0, 'aria-label': label });
      const frame = made('iframe', '', {
        title: `HTML part, ${width} pixels wide`,
        sandbox: 'allow-same-origin allow-popups allow-popups-to-escape-sandbox',
      });
      frame.addEventListener('load', () => fit(frame));
      box.append(frame);
      figure.append(made('figcaption', `${width} px`), box);
      return figure;
    }));
  }
  for (const frame of frames.querySelectorAll('iframe')) {
    if (frame.getAttribute('src') !== source) frame.src = source;
  }
};

const showInbox = ({ sender, subject, subject_length: length, text }, language) => {
  for (const row of document.querySelectorAll('.inbox .row')) {
    row.lang = language;
    row.querySelector('.sender').textContent = sender;
    row.querySelector('.subject').textContent = subject;
    row.querySelector('.beginning').textContent = text;
  }
  const isLong = length > SUBJECT_LENGTH_MAX;
  by('length').textContent = `The subject has ${length} characters${isLong ? `, more than ${SUBJECT_LENGTH_MAX}` : ''}.`;
  by('length').classList.toggle('bad', isLong);
};

const showSource = async (choice, mine) => {
  if (!by('source').open) {
    by('html').textContent = '';
    return;
  }
  const answer = await fetch(pathOf(choice, '/source.html'));
  const html = await answer.text();
  if (mine === turn) by('html').textContent = html;
};

const nameOf = (choice) => {
  const email = list.emails.find((email) => email.name === choice.email);
  const variant = email.variants.find((variant) => variant.name === choice.variant);
  return `${email.template} ${email.recipient}: ${variant.words.toLowerCase()}`;
};

let turn = 0;
const show = async () => {
  if (list.emails.length === 0) return;
  const choice = settle();
  const mine = ++turn;
  showList(choice);
  showProblems(choice);
  document.title = `${nameOf(choice)}, ${choice.locale} – Offramp preview`;
  const isMissing = (list.missing[choice.locale] || []).includes(choice.email);
  by('absent').hidden = !isMissing;
  if (isMissing) {
    by('shown').hidden = true;
    by('absent').children[0].textContent = nameOf(choice);
    by('absent').children[1].textContent = `Not written in ${choice.locale} yet: ${choice.email}.md is missing.`;
    return;
  }
  try {
    const email = await answerOf(pathOf(choice));
    if (mine !== turn) return;
    by('outdated').hidden = !(list.outdated[choice.locale] || []).includes(choice.email);
    by('subject').textContent = email.subject;
    by('subject').lang = email.language;
    const size = `${(email.bytes / 1000).toFixed(1)} KB`;
    by('about').textContent = `${nameOf(choice)} · to ${email.to} · in ${email.language} · ${size}`;
    by('text').textContent = email.text;
    by('text').lang = email.language;
    by('headers').textContent = email.headers;
    by('eml').href = pathOf(choice, '/email.eml');
    showInbox(email.inbox, email.language);
    by('shown').hidden = false;
    showFrames(choice);
    await showSource(choice, mine);
  } catch (error) {
    if (mine === turn) state(error.message, true);
  }
};

const state = (text, bad = false) => {
  by('state').textContent = text;
  by('state').classList.toggle('bad', bad);
};

const reload = async () => {
  try {
    list = await answerOf('/emails');
    await show();
    const places = [list.directory, list.organization_file].filter(Boolean);
    const place = places.length > 0 ? `Following ${places.join(' and ')}` : 'Built-in emails';
    state(revision > 2 ? `${new Date().toLocaleTimeString()} · ${place}` : place);
  } catch (error) {
    state(error.message, true);
  }
};

// The next or previous email of the list, as filtered.
const step = (by_) => {
  const links = [...document.querySelectorAll('nav a')];
  if (links.length === 0) return;
  const now = links.findIndex((link) => link.hasAttribute('aria-current'));
  const next = now < 0 ? 0 : Math.min(links.length - 1, Math.max(0, now + by_));
  location.hash = links[next].getAttribute('href');
};

addEventListener('hashchange', () => {
  by('answer').textContent = '';
  show();
});
addEventListener('keydown', (event) => {
  const isTyping = event.target.closest('input:not([type=radio]):not([type=checkbox]), select, textarea');
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target === by('filter') && event.key === 'Escape') {
    by('filter').value = '';
    showList(settle());
    by('email').focus();
  }
  if (isTyping) return;
  if (event.key === 'j') step(1);
  else if (event.key === 'k') step(-1);
  else if (event.key === '/') by('filter').focus();
  else return;
  event.preventDefault();
});
by('filter').addEventListener('input', () => showList(settle()));
by('locale').addEventListener('change', () => {
  location.hash = hashOf({ ...chosen(), locale: by('locale').value });
});
by('look').addEventListener('change', () => {
  location.hash = hashOf({ ...chosen(), look: by('look').value });
});
by('widths').addEventListener('change', () => showFrames(settle()));
by('dark').addEventListener('change', () => showFrames(settle()));
by('source').addEventListener('toggle', () => showSource(settle(), turn));
by('copy').addEventListener('click', async () => {
  const answer = by('answer');
  try {
    // Browsers offer this at localhost only, or over TLS.
    await navigator.clipboard.writeText(location.href);
    answer.textContent = 'The link is copied';
    answer.classList.remove('bad');
  } catch {
    answer.textContent = location.href;
    answer.classList.remove('bad');
    getSelection().selectAllChildren(answer);
  }
});
by('send').addEventListener('submit', async (event) => {
  event.preventDefault();
  const [button, answer, to] = [by('send').querySelector('button'), by('answer'), by('to').value];
  button.disabled = true;
  answer.classList.remove('bad');
  answer.textContent = `Sending through ${list.smtp_url} …`;
  try {
    const sent = await answerOf(pathOf(settle(), '/send'), {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ to }),
    });
    answer.textContent = `${sent.sent ? `Sent to ${to} through ${list.smtp_url}` : 'Not sent'}: ${sent.answer}`;
    answer.classList.toggle('bad', !sent.sent);
  } catch (error) {
    answer.textContent = `Not sent: ${error.message}`;
    answer.classList.add('bad');
  } finally {
    button.disabled = false;
  }
});

// The navigation begins below the header, however high that is.
new ResizeObserver(() => {
  const { height } = document.querySelector('header').getBoundingClientRect();
  document.documentElement.style.setProperty('--header', `${Math.round(height)}px`);
}).observe(document.querySelector('header'));

const changes = new EventSource('/changes');
changes.addEventListener('message', (event) => {
  revision = Number(event.data);
  reload();
});
changes.addEventListener('error', () => state('No connection: has `offramp preview` ended? Trying again …', true));
