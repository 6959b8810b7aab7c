// What the reader measured, as a structured report through OHIF's own writer and DICOMweb.
import { Problem } from './api.js';
import { active, host, service, source } from './host.js';
import { forgetStudy } from './label.js';
import { say, state } from './state.js';

// By measurement: what of it is stored. A report holds only what no report holds yet, or what was changed since.
const stored = new Map();
const told = ({ points, label, finding, findingSites }) => JSON.stringify([points, label, finding, findingSites]);
const keep = measurement => stored.set(measurement.uid, told(measurement));

// A measurement that came from a report: OHIF tells of it by an event of its own.
export const cameFromReport = ({ measurement }) => keep(measurement);

export async function submitMeasurements() {
  const study = active().image?.StudyInstanceUID;
  const measured = service('measurementService').getMeasurements().filter(one => one.referenceStudyUID === study);
  if (!measured.length) throw new Problem({ title: 'Nothing is measured', remedy: 'measure with the tools above the image' });
  const fresh = measured.filter(one => stored.get(one.uid) !== told(one));
  if (!fresh.length) return say(`Nothing new is measured: ${amount(measured)} stored already.`);
  const author = state.author.trim();
  if (!author) throw new Problem({ title: 'Nobody says who measured', about: 'Reader', remedy: 'enter your name' });
  const data = source();
  const store = { ...data.store, dicom: (report, ...more) => data.store.dicom(observed(report, author), ...more) };
  await host.commandsManager.runCommand(
    'storeMeasurements',
    {
      measurementData: fresh,
      dataSource: { store, deleteStudyMetadataPromise: forgetStudy },
      additionalFindingTypes: ['ArrowAnnotate'],
      options: { SeriesDescription: 'Measurements', SeriesNumber: '3100' },
    },
    'CORNERSTONE_STRUCTURED_REPORT'
  );
  fresh.forEach(keep);
  say(`${amount(fresh)} stored.`);
}

// OHIF names the observer "unknown" (TID 1003): here it is the reader, without what a person's name cannot hold.
function observed(report, author) {
  const named = item => [item.ConceptNameCodeSequence].flat()[0]?.CodeValue === '121008';
  const name = author.replace(/[\\^=]/g, ' ');
  for (const item of [report.ContentSequence].flat().filter(named)) item.PersonName = name;
  return report;
}

const amount = ({ length }) => `${length} measurement${length > 1 ? 's' : ''}`;
