export { createRoot } from 'react';
