// What the reader measured, as a structured report through OHIF's own writer and DICOMweb.
import { Problem } from './api.js';
import { host, service, source } from './host.js';
import { forgetStudy } from './label.js';
import { say } from './state.js';

export async function submitMeasurements() {
  const measured = service('measurementService').getMeasurements();
  if (!measured.length) throw new Problem({ title: 'Nothing is measured', remedy: 'measure with the tools above the image' });
  const data = source();
  await host.commandsManager.runCommand(
    'storeMeasurements',
    {
      measurementData: measured,
      dataSource: { store: data.store, deleteStudyMetadataPromise: forgetStudy },
      additionalFindingTypes: ['ArrowAnnotate'],
      options: { SeriesDescription: 'Measurements', SeriesNumber: '3100' },
    },
    'CORNERSTONE_STRUCTURED_REPORT'
  );
  say(`${measured.length} measurement${measured.length > 1 ? 's' : ''} stored.`);
}
