// What the reader measured, as a structured report through OHIF's own writer and DICOMweb.
import { Problem } from './api.js';
import { host, service, source } from './host.js';
import { say, state } from './state.js';

export async function submitMeasurements() {
  const measured = service('measurementService').getMeasurements();
  if (!measured.length) throw new Problem({ title: 'Nothing is measured', remedy: 'measure with the tools above the image' });
  const data = source();
  const store = { dicom: (report, ...rest) => data.store.dicom(complete(report), ...rest) };
  await host.commandsManager.runCommand(
    'storeMeasurements',
    {
      measurementData: measured,
      dataSource: { store, deleteStudyMetadataPromise: study => data.deleteStudyMetadataPromise(`${data.getConfig().name}:${study}`) },
      additionalFindingTypes: ['ArrowAnnotate'],
      options: { SeriesDescription: 'Measurements', SeriesNumber: '3100' },
    },
    'CORNERSTONE_STRUCTURED_REPORT'
  );
  say(`${measured.length} measurement${measured.length > 1 ? 's' : ''} stored.`);
}

function complete(report) {
  return report;
}
